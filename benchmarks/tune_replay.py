"""Trials of recorded learning curves through Ray Tune and the sweep's own queue, files and scheduler: does what a trial
costs the driver, in memory or time, grow with the trials before it?

Each trial reports its configuration's curve, writing the checkpoint of every report as a real one does, but trains
nothing. search_replay.py --tune runs it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from raytune_llm.sweep.backends.base import RunnerInputs, trial_spec
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.space import Sweep
from raytune_llm.training import checkpoints
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.history import History

CPUS, CONCURRENT = 2, 2
START_SECONDS = 6.0
"""That the first trials last, so that Ray has started their processes, which the others then share."""
MARKS = (10, 50, 100, 250, 500, 750, 1000)
"""Ended trials at which the driver is measured; each figure of a trial is the mean since the mark before."""


@dataclass(frozen=True)
class Replaying:
    """A backend whose trials report recorded costs."""

    curves: list[list[tuple[int, float]]]
    """Step and value of each report, of each configuration."""

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        return None

    def start(self, inputs: RunnerInputs) -> ReplayRunner:
        return ReplayRunner(inputs, self.curves)


class ReplayRunner:
    """Runs a sweep of recorded trials."""

    hastens = overlaps_decisions = False
    max_concurrent: int | None = CONCURRENT
    num_gpus = 0.0

    def __init__(self, inputs: RunnerInputs, curves: list[list[tuple[int, float]]]) -> None:
        from ray import tune

        trainable = tune.with_parameters(report, config=inputs.config, plan=inputs.plan, curves=curves)
        self.trainable = tune.with_resources(trainable, {"cpu": 0.001})

    def fits(self, plan: Plan) -> bool:
        return True

    def hasten(self, trial_ids: Sequence[str]) -> None:
        """They report as fast as they can."""

    def rehearse(self, script: Any) -> None:
        """There is nothing to measure beforehand."""

    def peak_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """There is nothing to close."""


def report(point: dict[str, Any], *, config: TrialConfig, plan: Plan, curves: list[list[tuple[int, float]]]) -> None:
    """A Tune trial: any of the curves."""
    from ray import tune

    id = tune.get_context().get_trial_id()
    spec = trial_spec(config, plan, point, id)
    if int(id.removeprefix("t")) <= CONCURRENT:
        time.sleep(START_SECONDS)
    history = History(config.objective)
    for step, value in random.Random(id).choice(curves):
        history.add(step, {config.objective.metric: value})
        checkpoints.publish(spec.directory, step, history.save, keep=())
        tune.report({"step": step, "best_step": history.best.step, **history.last.metrics})


def measured(sweep: Sweep, config: TrialConfig, curves: list[list[tuple[int, float]]]) -> list[dict[str, float]]:
    """Run the sweep; what a trial cost the driver in each stretch between two marks."""
    import ray

    from raytune_llm import cluster, session
    from raytune_llm.sweep import progress, tuner
    from raytune_llm.sweep.phases import Phase

    marks: list[dict[str, float]] = []
    ended = set[str]()
    end_of_trial = progress.Shown.on_trial_complete

    def on_trial_complete(self: progress.Shown, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        end_of_trial(self, iteration, trials, trial, **info)
        ended.add(trial.trial_id)
        if len(ended) in MARKS:
            marks.append(mark(len(ended)))

    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever the machine does comes before the trials
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    cluster.set_environment()
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp", ignore_cleanup_errors=True) as folder:
        session.begin(dashboard=False, num_cpus=CPUS, _temp_dir=f"{folder}/ray")
        phase = Phase(config=replace(config, home=f"{folder}/home"), examples=None)
        with patch.object(progress.Shown, "on_trial_complete", on_trial_complete):
            tuner.run(replace(sweep, backend=Replaying(curves)), [phase], use_gpu=False, interactive=False)
        ray.shutdown()
    return [stretch(*pair) for pair in pairwise(marks)]


def mark(trials: int) -> dict[str, float]:
    """The driver now."""
    return {
        "trials": trials,
        "wall": time.monotonic(),
        "cpu": time.process_time(),
        "own_megabytes": psutil.Process().memory_full_info().uss / 1e6,
    }


def stretch(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The driver at a mark, and what each trial has cost it since the one before."""
    count = now["trials"] - before["trials"]
    return {
        "trials": now["trials"],
        "driver_megabytes": round(now["own_megabytes"], 1),
        "driver_cpu_milliseconds": round(1e3 * (now["cpu"] - before["cpu"]) / count, 1),
        "wall_milliseconds": round(1e3 * (now["wall"] - before["wall"]) / count, 1),
    }
