"""A small sweep on the embedded base whose pack actor is killed with −9 at a given step: every trial must end as if
nothing had happened, with each of its reports exactly once."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .step import Step, main

STEPS, EVAL_EVERY, KILL_AT = 40, 10, 20


@dataclass(frozen=True)
class Kill:
    """A tracker that kills its own process, once."""

    marker: str
    """File that is made before."""
    step: int
    """The step from which on it does so."""

    def start(self, info: Any) -> Kill:
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < self.step:
            return
        try:
            Path(self.marker).open("x").close()
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Nothing is open."""


def run(step: Step) -> None:
    import ray

    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.stages import prepare_job
    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.phases import Phase

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    marker = step.scratch / "killed"
    sizes = [1, 4] if step.smoke else [1, 4, 8, 16]
    job = load(
        "sweep",
        [
            *("model=demo", "data=demo_sarcasm", f"home={step.scratch}/home-lost", "name=lost", "run=first"),
            *("sweep/backend=packed", "sweep/scheduler=none", f"sweep.space.tuning.adapter_size={sizes}"),
            *(f"sweep.space.tuning.steps=[{STEPS}]", "sweep.space.tuning.learning_rate_multiplier=[1.0]"),
            *(f"tuning.eval_every={EVAL_EVERY}", "tuning.early_stopping.patience=null", "scaling.cpus_per_worker=2"),
            f"scaling.use_gpu={str(step.on_gpu).lower()}",
        ],
    )
    job = dataclasses.replace(job, tracking={"kill": Kill(str(marker), KILL_AT)})
    started = prepare_job(job)
    config, began = job.trial_config(started.prepared.better), time.monotonic()
    phase = Phase(config=config, examples=ray.put(started.prepared.examples))
    outcomes = tuner.run(job.sweep, [phase], use_gpu=started.use_gpu, interactive=False).outcomes
    expected = list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY))
    whole = [o for o in outcomes if o.ended == "complete" and [r.step for r in o.reports] == expected]
    step.add(killed=marker.exists(), whole_trials=len(whole), trials=len(sizes), seconds=time.monotonic() - began)


if __name__ == "__main__":
    main(run)
