"""Where the seconds go from typing `python jobs/train.py` to the end of the first optimizer step.

    python benchmarks/startup.py                     the embedded base and data
    python benchmarks/startup.py --runs 3 OVERRIDE…  the median of three runs, with overrides of your own

Each run is a fresh process with a home of its own. Stages are marked by wrapping the product's functions, in the
driver and in the training worker; every mark is a time of the wall clock. Figures mean something on an idle machine
alone; the load is printed with them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKS = "RAYTUNE_LLM_BENCHMARK_MARKS"
OVERRIDES = ("model=demo", "data=demo_sarcasm", "tuning.steps=1", "evaluation.max_examples=8", "promote=never")
STAGES = {
    "interpreter": "interpreter started",
    "imports": "config and jobs imported",
    "compose": "job composed and checked by its types",
    "knobs": "base's facts read, knobs checked",
    "data": "records read, encoded, examined",
    "ray": "Ray session up (the rest of it, where it starts during the above)",
    "setup": "trial handed to Ray Train",
    "worker": "Ray Train's controller and worker processes up",
    "libraries": "torch and transformers imported in the worker",
    "model": "model and adapter in memory",
    "trainer": "TRL imported, trainer built",
    "loop": "training loop entered",
    "step": "first optimizer step done",
}
"""Key and meaning of each stage; a stage ends where its mark is made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    runs = [one_run(arguments.overrides) for _ in range(arguments.runs)]
    seconds = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    first_step = statistics.median(sum(run.values()) for run in runs)
    print(f"{'seconds':>8}  {'since':>6}  stage")
    since = 0.0
    for stage, meaning in STAGES.items():
        since += seconds[stage]
        print(f"{seconds[stage]:8.2f}  {since:6.2f}  {meaning}")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load_before": load_before}
    figures = {"first_step_seconds": round(first_step, 2), "stages": {k: round(v, 2) for k, v in seconds.items()}}
    print(json.dumps({"benchmark": "startup", **machine, "runs": arguments.runs, **figures}))


def one_run(overrides: list[str]) -> dict[str, float]:
    """Seconds of each stage of one run. Raises CalledProcessError when the job failed."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        marks = Path(folder, "marks")
        environment = {**os.environ, MARKS: str(marks), "RAYTUNE_LLM_HOME": f"{folder}/home"}
        command = [sys.executable, __file__, "--", *OVERRIDES, *overrides]
        started = time.time()
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.stdout.buffer.write(done.stdout)
            done.check_returncode()
        at = {}
        for line in marks.read_text().splitlines():
            stage, moment = line.split()
            at.setdefault(stage, float(moment))
    times = [started, *(at[stage] for stage in STAGES)]
    return {stage: after - before for stage, before, after in zip(STAGES, times, times[1:], strict=False)}


def mark(stage: str, moment: float | None = None) -> None:
    """Append the end of a stage to the run's file of marks; its first mark counts."""
    with Path(os.environ[MARKS]).open("a") as file:
        file.write(f"{stage} {time.time() if moment is None else moment}\n")


def marked(function: Callable[..., Any], *, before: str | None = None, after: str | None = None) -> Callable[..., Any]:
    """The function, with marks when it is entered and left."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before:
            mark(before)
        result = function(*args, **kwargs)
        if after:
            mark(after)
        return result

    return wrapper


def job(entered: float) -> None:
    """jobs/train.py, with marks: run in a process of its own."""
    mark("interpreter", entered)
    sys.argv = [str(ROOT / "jobs" / "train.py"), *sys.argv[2:]]
    from raytune_llm.jobs import commands
    from raytune_llm.jobs.config import run

    mark("imports")
    run("train", train_with_marks(commands))


def train_with_marks(commands: Any) -> Callable[[Any], int]:
    """commands.train, which imports what it needs when it is called: so the marks are set then."""

    def train(composed: Any) -> int:
        mark("compose")
        from raytune_llm import cluster
        from raytune_llm.jobs import prepare
        from raytune_llm.training import ray_train

        prepare.check_knobs = marked(prepare.check_knobs, after="knobs")
        prepare.prepare = marked(prepare.prepare, after="data")
        cluster.uses_gpu = marked(cluster.uses_gpu, before="ray")
        ray_train.train = marked(ray_train.train, before="setup")
        path = os.environ[MARKS]

        def marked_worker(config: dict[str, Any]) -> None:
            os.environ[MARKS] = path
            mark("worker")
            run_worker(config)

        ray_train.worker = marked_worker
        return int(commands.train(composed))

    return train


def run_worker(config: dict[str, Any]) -> None:
    """The training worker, with marks."""
    import ray
    from transformers import TrainerCallback

    from raytune_llm.training import ray_train
    from raytune_llm.training.trial import Evaluator

    composed = ray.get(config["setup"]).spec.config
    mark("libraries")
    adapter, method = type(composed.adapter), type(composed.method)
    adapter.apply = marked(adapter.apply, after="model")
    method.trainer = marked(method.trainer, after="trainer")
    Evaluator.on_train_begin = marked(TrainerCallback.on_train_begin, before="loop")
    Evaluator.on_step_end = marked(Evaluator.on_step_end, before="step")
    ray_train.worker(config)


if __name__ == "__main__":
    if MARKS in os.environ:
        job(time.time())
    else:
        main()
