"""What a trial of a packed sweep costs besides its training, and whether the driver's memory grows with trials.

    python benchmarks/sweep_overhead.py                   200 trials through 16 slots of one base
    python benchmarks/sweep_overhead.py --trials 400

Trials of two steps on single examples of the embedded data, tracking off: what is measured is Ray Tune, the proxies,
joining, checkpointing and leaving. CPU seconds of all processes and the driver's memory are read as trials end; the
slope from the 32nd trial on is the price of one more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from sweep_makespan import MARK, POLL_SECONDS, ROOT, count_cpu

WARM_TRIALS = 32
SLOTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(Path(arguments.run), arguments.trials)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        conclude(arguments.trials, measured(Path(folder), arguments.trials))


def run(home: Path, trials: int) -> None:
    """The sweep; each ended trial adds a character to a file."""
    import ray

    from raytune_llm.data.demo import path as demo
    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.stages import prepare_job
    from raytune_llm.sweep import progress, tuner
    from raytune_llm.sweep.phases import Phase

    def on_trial_complete(self: progress.Shown, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with (home / "ended").open("a") as ended:
            ended.write(".")

    rows = Path(demo("data/sarcasm/eval.jsonl")).read_text().splitlines()[:4]
    (home / "eval.jsonl").write_text("\n".join(rows) + "\n")
    rates = "{min: 0.1, max: 3.0, distribution: log_uniform}"
    job = load(
        "sweep",
        [
            *("model=demo", "data=demo_sarcasm", f"data.eval={home}/eval.jsonl", f"home={home}", "tuning.batch_size=1"),
            *("tuning.eval_every=2", "sweep/backend=packed", f"sweep.backend.slots={SLOTS}", "sweep/scheduler=none"),
            *("sweep/search=random", f"sweep.search.trials={trials}", "sweep.space.tuning.steps=[2]"),
            *(f"sweep.space.tuning.learning_rate_multiplier={rates}", "scaling.cpus_per_worker=2"),
            *("sweep.confirm.top=0", "evaluation.drift=false"),
        ],
    )
    started = prepare_job(job)
    with patch.object(progress.Shown, "on_trial_complete", on_trial_complete):
        phase = Phase(config=job.trial_config(started.prepared.better), examples=ray.put(started.prepared.examples))
        outcomes = tuner.run(job.sweep, [phase], use_gpu=started.use_gpu, interactive=False).outcomes
    assert len(outcomes) == trials and all(outcome.ended == "complete" for outcome in outcomes)


def measured(home: Path, trials: int) -> list[dict[str, float]]:
    """As trials end: how many have, CPU seconds of all processes so far, megabytes of the driver's own memory."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", MARK: str(home)}
    command = [sys.executable, __file__, "--run", str(home), "--trials", str(trials)]
    readings: list[dict[str, float]] = []
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, stdout=log, stderr=log)
        spent: dict[tuple[int, float], float] = {}
        while process.poll() is None:
            count_cpu(str(home), spent)
            ended = len((home / "ended").read_text()) if (home / "ended").exists() else 0
            if ended and (not readings or ended > readings[-1]["trials"]):
                memory = psutil.Process(process.pid).memory_full_info().uss / 1e6
                readings.append({"trials": ended, "cpu_s": sum(spent.values()), "driver_mb": memory})
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError("the sweep failed:\n" + (home / "log").read_text()[-4000:])
    return readings


def conclude(trials: int, readings: list[dict[str, float]]) -> None:
    """The slopes from the 32nd trial to the last one seen."""
    warm = next(reading for reading in readings if reading["trials"] >= WARM_TRIALS)
    last = readings[-1]
    count = last["trials"] - warm["trials"]
    slope = (last["cpu_s"] - warm["cpu_s"]) / count
    for reading in readings[:: max(1, len(readings) // 10)]:
        ended, cpu_s, memory = reading["trials"], reading["cpu_s"], reading["driver_mb"]
        print(f"{ended:6.0f} trials ended  {cpu_s:8.1f} CPU s  driver {memory:7.1f} MB")
    print(f"\none more trial: {slope:.3f} CPU s; driver {warm['driver_mb']:.1f} → {last['driver_mb']:.1f} MB")
    figures = {"cpu_s_per_trial": round(slope, 3), "driver_mb": [warm["driver_mb"], last["driver_mb"]]}
    print(json.dumps({"benchmark": "sweep_overhead", "cores": os.cpu_count(), "trials": trials, **figures}))


if __name__ == "__main__":
    main()
