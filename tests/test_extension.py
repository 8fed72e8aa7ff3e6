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


def example(*names):
    """The files of the named choices."""
    return {path: text for path, text in EXAMPLES.items() if Path(path).stem in names}


def copy(folder, additions):
    """A copy of the project with files added to it, none of them there before."""
    for name in ("raytune_llm", "conf", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in additions.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


def python(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


COMPOSE = """
import json, sys
from raytune_llm.jobs.config import load
from raytune_llm.stores.components import build, describe
command, key, overrides, refused = json.loads(sys.argv[1])
job = load(command, overrides)
described = describe(job)
assert build(type(job), described) == job
for name in key.split("."):
    described = described[name]
try:
    load(command, [*overrides, refused])
except ValueError as error:
    print(json.dumps([described, str(error)]))
"""


@pytest.mark.parametrize("name", CASES)
def test_one_module_and_one_yaml_add_a_choice(name, tmp_path):
    command, overrides, key, values, refused = CASES[name]
    files = example(name)
    assert sorted(Path(path).suffix for path in files) == [".py", ".yaml"]
    project = copy(tmp_path / "project", files)
    done = python(project, "-c", COMPOSE, json.dumps([command, key, overrides, f"{key}.{refused}"]))
    assert done.returncode == 0, done.stderr
    described, message = json.loads(done.stdout)
    assert described.items() >= values.items()
    assert message.startswith(f"{key}.{refused.partition('=')[0]}")
    listed = python(project, f"jobs/{command}.py", *overrides, "--help").stdout
    assert f"  {key}.{refused.partition('=')[0]} = " in listed


def test_every_example_of_the_page_is_used():
    assert {Path(path).stem for path in EXAMPLES} == CASES.keys()


def test_an_added_method_is_trained_and_an_added_tracker_logs_it(tmp_path):
    project, home = copy(tmp_path / "project", example("focal", "text")), tmp_path / "home"
    chosen = ["method=focal", "method.gamma=1.0", "tracking=text", f"home={home}", "name=added", "run=first"]
    done = python(project, "jobs/train.py", *DEMO, *chosen, *SMALL, *COMPARED)
    assert done.returncode == 0, done.stderr
    card = json.loads((home / "registry" / "added" / "v1" / "card.json").read_text())
    assert card["method"] == "focal"
    assert card["config"]["method"] == {"type": "focal", "metric": "eval/loss", "gamma": 1.0}
    (lines,) = home.rglob("lines.txt")
    logged = lines.read_text().splitlines()
    assert logged[-1] == "finished"
    assert any(line.startswith("4 ") and "eval/loss" in line for line in logged)
    evaluated = python(project, "jobs/evaluate.py", "adapter=added@1", "data=demo_sarcasm", f"home={home}", *COMPARED)
    assert evaluated.returncode == 0, evaluated.stderr


REWARDED = """
from raytune_llm.data.examples import Rollout
from raytune_llm.jobs.config import load
method = load("train", ["model=demo", "data=demo_sarcasm", "method=rlhf", "method/rewards=[brevity]"]).method
short, long = (Rollout((), (), "prompt", "x" * n, "answer", ended=True) for n in (50, 300))
print(method.rewards["brevity"].open(None)([short, long]))
"""


def test_an_added_reward_scores_completions(tmp_path):
    done = python(copy(tmp_path / "project", example("brevity")), "-c", REWARDED)
    assert done.stdout.strip() == "[0.75, 0.0]", done.stderr


def test_an_added_dialect_is_read(tmp_path):
    project = copy(tmp_path / "project", {})
    (line,) = re.findall(r"in `DIALECTS`\n\n```python\n(.*)\n```", PAGE)
    records = project / "raytune_llm/data/records.py"
    records.write_text(records.read_text().replace("DIALECTS = (\n", f"DIALECTS = (\n    {line},\n"))
    code = "from raytune_llm.data.records import *; print(parse({'question': 'q', 'answer': 'a'}, [Supervised]))"
    done = python(project, "-c", code)
    assert done.stdout.strip() == "Supervised(prompt='q', completion='a')", done.stderr
