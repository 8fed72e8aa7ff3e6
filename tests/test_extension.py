"""A choice is a file: the examples of CONTRIBUTING.md, a method, a reward, an engine and a tracker, are each added to a
copy of the project by one module and one YAML, with no other edit; they compose, are built, refuse wrong values, and
are used for real."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^`(\S+\.(?:py|yaml))`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
"""The page's examples: text by path."""
DEMO = ["model=demo", "data=demo_sarcasm"]
RLHF = [*DEMO, "method=rlhf", "method/rewards=[brevity]"]
CASES = {
    "focal": ("sweep", [*DEMO, "method=focal"], "method", {"type": "focal", "gamma": 2.0}, "gamma=-1"),
    "brevity": ("train", RLHF, "method.rewards.brevity", {"type": "brevity", "longest": 200}, "longest=0"),
    "text": ("sweep", [*DEMO, "tracking=text"], "tracking.text", {"type": "text"}, "file=[1]"),
    "shared_gpu": (
        "serve",
        ["version=x", "serve/engine=shared_gpu"],
        "serve.engine",
        {"type": "shared_gpu", "gpus_per_replica": 0.5, "cpus_per_replica": 1.0},
        "gpus_per_replica=2",
    ),
}
"""By name: command, overrides that choose it, its key, values of it, and an override that it refuses."""
SMALL = ["tuning.steps=4", "tuning.eval_every=2", "tuning.warmup_steps=0", "tuning.batch_size=4"]
COMPARED = ["evaluation.max_examples=8", "evaluation.bootstrap_draws=20", "evaluation.max_new_tokens=8"]


def python(project, code, *arguments):
    """What a program prints that imports the package from a project."""
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-c", code, *map(json.dumps, arguments)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copied(folder):
    """A copy of the project."""
    for name in ("raytune_llm", "conf", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the examples added to it, none of their files there before."""
    folder = copied(tmp_path_factory.mktemp("extended") / "project")
    for path, text in EXAMPLES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


COMPOSE = """
import json, sys
from raytune_llm.data.examples import Rollout
from raytune_llm.jobs.config import CONF, compose, load, plain
from raytune_llm.jobs.help import help_text
from raytune_llm.stores.components import build, describe

found = {}
for name, (command, overrides, key, refused) in json.loads(sys.argv[1]).items():
    job = load(command, overrides)
    described = describe(job)
    assert build(type(job), described) == job
    for part in key.split("."):
        described = described[part]
    try:
        load(command, [*overrides, refused])
    except ValueError as error:
        found[name] = described, str(error), help_text(type(job), plain(compose(command, overrides)), CONF, command)
    if name == "brevity":
        rollouts = [Rollout((), (), "prompt", "x" * length, "answer", ended=True) for length in (50, 300)]
        found["rewards"] = job.method.rewards[name].open(None)(rollouts)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def composed(project):
    """By name of an example: its values as described, the message for its refused override, and the help."""
    cases = {
        name: (command, overrides, key, f"{key}.{refused}")
        for name, (command, overrides, key, _, refused) in CASES.items()
    }
    return json.loads(python(project, COMPOSE, cases))


@pytest.mark.parametrize("name", CASES)
def test_one_module_and_one_yaml_add_a_choice(name, composed):
    _, _, key, values, refused = CASES[name]
    assert sorted(Path(path).suffix for path in EXAMPLES if Path(path).stem == name) == [".py", ".yaml"]
    described, message, listed = composed[name]
    assert described.items() >= values.items()
    assert message.startswith(f"{key}.{refused.partition('=')[0]}")
    assert f"  {key}.{refused.partition('=')[0]} = " in listed


def test_every_example_of_the_page_is_used():
    assert {Path(path).stem for path in EXAMPLES} == CASES.keys()


def test_an_added_reward_scores_completions(composed):
    assert composed["rewards"] == [0.75, 0.0]


RUN = """
import json, sys
import raytune_llm
for command, overrides in json.loads(sys.argv[1]):
    assert not raytune_llm.compose(command, overrides).run()
"""


def test_an_added_method_is_trained_and_an_added_tracker_logs_it(project, tmp_path):
    home = tmp_path / "home"
    chosen = ["method=focal", "method.gamma=1.0", "tracking=text", f"home={home}", "name=added", "run=first"]
    evaluated = ["adapter=added@1", "data=demo_sarcasm", f"home={home}", *COMPARED]
    python(project, RUN, [("train", [*DEMO, *chosen, *SMALL, *COMPARED]), ("evaluate", evaluated)])
    card = json.loads((home / "registry" / "added" / "v1" / "card.json").read_text())
    assert card["method"] == "focal"
    assert card["config"]["method"] == {"type": "focal", "metric": "eval/loss", "gamma": 1.0}
    (lines,) = home.rglob("lines.txt")
    logged = lines.read_text().splitlines()
    assert logged[-1] == "finished"
    assert any(line.startswith("4 ") and "eval/loss" in line for line in logged)


def test_an_added_dialect_is_read(tmp_path):
    project = copied(tmp_path / "project")
    (line,) = re.findall(r"in `DIALECTS`\n\n```python\n(.*)\n```", PAGE)
    dialects = project / "raytune_llm/data/dialects/dialect.py"
    dialects.write_text(dialects.read_text().replace("DIALECTS = (\n", f"DIALECTS = (\n    {line},\n"))
    code = (
        "from raytune_llm.data.dialects.parsing import parse; from raytune_llm.data.records import Supervised; "
        "print(parse({'question': 'q', 'answer': 'a'}, [Supervised]))"
    )
    assert python(project, code).strip() == "Supervised(prompt='q', completion='a')"
