"""A choice is a file: a method, an engine and a tracker are each added to a copy of the project by one module and one
YAML, with no other edit; they compose, are built, refuse wrong values, and the method is trained for real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]

FOCAL = {
    "raytune_llm/methods/focal.py": '''
        """Focal loss on the completion: tokens that are known already count less."""

        from __future__ import annotations

        from dataclasses import dataclass

        from raytune_llm.data.examples import Example
        from raytune_llm.data.question import question
        from raytune_llm.data.records import Record, Supervised, Text
        from raytune_llm.data.tokens import Tokens
        from raytune_llm.errors import require
        from raytune_llm.evaluation.terms import Term
        from raytune_llm.methods.base import Needs
        from raytune_llm.methods.common.loss_terms import LossTermsMethod
        from raytune_llm.models.outputs import Outputs


        @dataclass(frozen=True, kw_only=True)
        class Focal(LossTermsMethod):
            """Learn what isn't known yet."""

            metric: str
            """The eval metric that stops, ranks and selects trials."""
            gamma: float
            """How little a known token counts; ≥ 0."""

            records = (Supervised,)
            needs = Needs()

            def __post_init__(self) -> None:
                require(self.gamma >= 0, "method.gamma", self.gamma, "≥ 0")

            def encode(self, record: Record, tokens: Tokens) -> Example | None:
                sequence = tokens.completion(record.prompt, record.completion)
                return None if sequence is None else {"completion": sequence}

            def question(self, record: Record) -> tuple[Text, str] | None:
                return question(record)

            def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
                completion = outputs["completion"]
                lost = -((1 - completion.logprobs.exp()) ** self.gamma) * completion.logprobs
                return {"loss": Term((lost * completion.mask).sum(-1), completion.mask.sum(-1))}
        ''',
    "conf/method/focal.yaml": """
        type: focal
        metric: eval/loss
        gamma: 2.0
        """,
}
LINES = {
    "raytune_llm/training/tracking/lines.py": '''
        """One line of text for each report, in the run's folder."""

        from __future__ import annotations

        from collections.abc import Mapping
        from dataclasses import dataclass
        from pathlib import Path

        from raytune_llm.training.tracking.base import Run, RunInfo


        @dataclass(frozen=True, kw_only=True)
        class Lines:
            """Plain lines."""

            file: str
            """Name of the file in the run's folder."""

            def start(self, info: RunInfo) -> Run:
                return LinesRun(Path(info.directory, self.file), info.config["job"])


        class LinesRun:
            def __init__(self, path: Path, job: str) -> None:
                self.path = path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{job}\\n")

            def log(self, step: int, metrics: Mapping[str, float]) -> None:
                with self.path.open("a") as stream:
                    stream.write(f"{step} {' '.join(sorted(metrics))}\\n")

            def finish(self, summary: Mapping[str, float], failed: bool) -> None:
                with self.path.open("a") as stream:
                    stream.write("failed\\n" if failed else "finished\\n")
        ''',
    "conf/tracking/lines.yaml": """
        # @package tracking.lines
        type: lines
        file: lines.txt
        """,
}
PARROT = {
    "raytune_llm/serving/engine/parrot.py": '''
        """An engine that reserves half a CPU."""

        from __future__ import annotations

        from dataclasses import dataclass
        from typing import Any

        from raytune_llm.errors import require


        @dataclass(frozen=True, kw_only=True)
        class Parrot:
            """Repeats the prompt."""

            cpus: float
            """CPUs that one replica reserves; > 0."""

            def __post_init__(self) -> None:
                require(self.cpus > 0, "serve.engine.cpus", self.cpus, "> 0")

            def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
                return {"num_cpus": self.cpus}

            def load(self, base: Any, *, max_running: int) -> Any:
                raise NotImplementedError

            def named(self, catalogue: Any) -> Any:
                return catalogue

            def application(self, own: Any, catalogue: Any, scaling: Any, *, is_guarded: bool) -> Any:
                return own()

            def refused(self, handle: Any, *, timeout_seconds: float) -> dict[str, str]:
                return {}
        ''',
    "conf/serve/engine/parrot.yaml": """
        type: parrot
        cpus: 0.5
        """,
}
DEMO = ["model=demo", "data=demo_sarcasm"]
CASES = {
    "method": (FOCAL, "sweep", [*DEMO, "method=focal"], "method", {"type": "focal", "gamma": 2.0}, "gamma=-1"),
    "tracker": (LINES, "sweep", [*DEMO, "tracking=lines"], "tracking.lines", {"type": "lines"}, "file=[1]"),
    "engine": (PARROT, "serve", ["version=x", "serve/engine=parrot"], "serve.engine", {"cpus": 0.5}, "cpus=0"),
}
"""By kind: files, command, overrides that choose it, its key, values of it, and an override that it refuses."""


def copy(folder, *additions):
    """A copy of the project with files added to it, none of them there before."""
    for name in ("raytune_llm", "conf", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in (entry for files in additions for entry in files.items()):
        assert not (folder / path).exists()
        (folder / path).write_text(dedent(text).lstrip())
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


@pytest.mark.parametrize("kind", CASES)
def test_one_module_and_one_yaml_add_a_choice(kind, tmp_path):
    files, command, overrides, key, values, refused = CASES[kind]
    assert len(files) == 2
    project = copy(tmp_path / "project", files)
    done = python(project, "-c", COMPOSE, json.dumps([command, key, overrides, f"{key}.{refused}"]))
    assert done.returncode == 0, done.stderr
    described, message = json.loads(done.stdout)
    assert described.items() >= values.items()
    assert message.startswith(f"{key}.{refused.partition('=')[0]}")
    listed = python(project, f"jobs/{command}.py", *overrides, "--help").stdout
    assert f"  {key}.{refused.partition('=')[0]} = " in listed


def test_an_added_method_is_trained_and_an_added_tracker_logs_it(tmp_path):
    project, home = copy(tmp_path / "project", FOCAL, LINES), tmp_path / "home"
    chosen = ["method=focal", "method.gamma=1.0", "tracking=lines", f"home={home}", "name=added", "run=first"]
    small = ["tuning.steps=4", "tuning.eval_every=2", "tuning.warmup_steps=0", "tuning.batch_size=4"]
    compared = ["evaluation.max_examples=8", "evaluation.bootstrap_draws=20", "evaluation.max_new_tokens=8"]
    done = python(project, "jobs/train.py", *DEMO, *chosen, *small, *compared)
    assert done.returncode == 0, done.stderr
    card = json.loads((home / "registry" / "added" / "v1" / "card.json").read_text())
    assert card["method"] == "focal"
    assert card["config"]["method"] == {"type": "focal", "metric": "eval/loss", "gamma": 1.0}
    (lines,) = home.rglob("lines.txt")
    logged = lines.read_text().splitlines()
    assert logged[0] == "added" and logged[-1] == "finished"
    assert any(line.startswith("4 ") and "eval/loss" in line for line in logged)
    evaluated = python(project, "jobs/evaluate.py", "adapter=added@1", "data=demo_sarcasm", f"home={home}", *compared)
    assert evaluated.returncode == 0, evaluated.stderr
