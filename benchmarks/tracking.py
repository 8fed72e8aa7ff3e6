"""What trackers cost a sweep: the time that training and the driver spend in their calls, and the sweep's time with
them against without.

    python benchmarks/tracking.py                         16 packed trials of the demo, three times each way
    python benchmarks/tracking.py --repeats 1 --sides none,wandb

Every way runs once a round, in turn. `in calls` is the time inside start, log, summarize and finish, which a trial
waits for, and inside a job's begin and end; its share is of the sweep's time. `thread` is the CPU time of the threads
that keep logs (tracking/background.py), which nobody waits for but which share the cores. W&B is offline, MLflow's
store local.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sweep_makespan import MARK, POLL_SECONDS, ROOT, count_cpu

SIDES = {
    "none": ["tracking=none"],
    "wandb": ["tracking=wandb", "tracking.wandb.mode=offline"],
    "mlflow": ["tracking=mlflow"],
    "tensorboard": ["tracking=tensorboard"],
}
SWEEP = [
    *("model=demo", "data=demo_sarcasm", "name=tracked", "sweep/scheduler=none", "tuning.eval_every=10"),
    *("tuning.early_stopping.patience=null", "evaluation.max_examples=32", "sweep.warm_start=false"),
    *("sweep.space.tuning.steps=[60]", "sweep.space.tuning.adapter_size=[1,2,4,8]"),
    "sweep.space.tuning.learning_rate_multiplier=[0.5,1.0,2.0,3.0]",
]
MOST_PERCENT = 3.0
"""What trackers may cost a sweep."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(Path(arguments.run[0]), arguments.run[1])
    found: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides.split(",")}
    for number in range(arguments.repeats):
        for side, rounds in found.items():
            with tempfile.TemporaryDirectory(prefix="tracking-", ignore_cleanup_errors=True) as folder:
                rounds.append(measured(Path(folder), side))
            print(f"round {number + 1}  {side:12s} {line(rounds[-1])}", flush=True)
    conclude(found)


@dataclass(frozen=True)
class Timed:
    """A tracker that times another one's calls, in whichever process they are."""

    inner: Any
    folder: str

    def start(self, info: Any) -> Any:
        run = TimedRun(self.folder)
        run.inner = run.timed(self.inner.start, info)
        return run


class TimedRun:
    inner: Any

    def __init__(self, folder: str) -> None:
        self.folder, self.seconds = folder, 0.0

    def timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - started

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.timed(self.inner.log, step, metrics)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        if hasattr(self.inner, "summarize"):
            self.timed(self.inner.summarize, summary)

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        from raytune_llm.training.tracking.background import WORKER

        self.timed(self.inner.finish, summary, failed)
        note(self.folder, {"calls_s": self.seconds})
        WORKER.put(lambda: note(self.folder, {"thread_s": time.thread_time(), "pid": os.getpid()}))


def note(folder: str, found: Mapping[str, float]) -> None:
    Path(folder, f"{uuid.uuid4().hex}.json").write_text(json.dumps(found))


def run(home: Path, side: str) -> None:
    """The sweep, with its trials' trackers and the driver's own calls timed."""
    from raytune_llm.jobs import commands, tracking
    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.schema import SweepJob

    own, folder = SweepJob.trial_config, str(home / "notes")
    Path(folder).mkdir()

    def trial_config(self: SweepJob, *arguments: Any) -> Any:
        config = own(self, *arguments)
        timed = {name: Timed(tracker, folder) for name, tracker in config.tracking.items()}
        return dataclasses.replace(config, tracking=timed)

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                note(folder, {"driver_s": time.perf_counter() - started})

        return wrapped

    with (
        patch.object(SweepJob, "trial_config", trial_config),
        patch.object(tracking, "sweep_begins", timed(tracking.sweep_begins)),
        patch.object(tracking, "sweep_ended", timed(tracking.sweep_ended)),
    ):
        commands.run_sweep(load("sweep", [*SWEEP, *SIDES[side], f"home={home}"]))


def measured(home: Path, side: str) -> dict[str, float]:
    """One sweep: its seconds, CPU seconds of all its processes, seconds in calls, CPU seconds of the threads."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", MARK: str(home)}
    command = [sys.executable, __file__, "--run", str(home), side]
    spent: dict[tuple[int, float], float] = {}
    started = time.perf_counter()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, stdout=log, stderr=log)
        while process.poll() is None:
            count_cpu(str(home), spent)
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError("the sweep failed:\n" + (home / "log").read_text()[-4000:])
    seconds = time.perf_counter() - started
    notes = [json.loads(file.read_text()) for file in (home / "notes").glob("*.json")]
    threads: dict[float, float] = {}
    for one in notes:
        if "thread_s" in one:
            threads[one["pid"]] = max(threads.get(one["pid"], 0.0), one["thread_s"])
    calls, driver = (sum(one.get(name, 0.0) for one in notes) for name in ("calls_s", "driver_s"))
    return {
        "sweep_s": seconds,
        "cpu_s": sum(spent.values()),
        "calls_s": calls,
        "driver_s": driver,
        "thread_s": sum(threads.values()),
        "percent": 100 * (calls + driver) / seconds,
    }


def line(found: Mapping[str, float]) -> str:
    return (
        f"sweep {found['sweep_s']:6.1f} s  CPU {found['cpu_s']:6.1f} s  in calls: trials {found['calls_s']:6.3f} s, "
        f"driver {found['driver_s']:5.2f} s, {found['percent']:.2f} % of the sweep  thread {found['thread_s']:5.2f} s"
    )


def conclude(found: Mapping[str, list[dict[str, float]]]) -> None:
    """Medians, and each way against none."""
    medians = {
        side: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for side, rounds in found.items()
    }
    print()
    for side, median in medians.items():
        against = ""
        if side != "none" and "none" in medians:
            base = medians["none"]
            wall, cpu = (median[name] / base[name] for name in ("sweep_s", "cpu_s"))
            against = f"  against none: time {wall:.3f}, CPU {cpu:.3f}"
        print(f"{side:12s} {line(median)}{against}")
    within = all(median["percent"] < MOST_PERCENT for median in medians.values())
    print(f"\neach costs less than {MOST_PERCENT:g} % of the sweep's time in calls: {'yes' if within else 'NO'}")
    print(json.dumps({"benchmark": "tracking", "cores": os.cpu_count(), "medians": medians}))


if __name__ == "__main__":
    main()
