"""The project's own commands on the embedded base: RLHF (a reward model, then a policy) and distilling step-by-step.

Both run at the same time, each with a Ray session of its own. What is asked is whether they end right: status 0, and
every version that they promise in the registry. Without a GPU the same arguments are only checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .step import Step, main

SMALL = ["tuning.steps=20", "tuning.eval_every=10", "tuning.batch_size=8", "tuning.warmup_steps=0"]
SMALL += ["evaluation.max_examples=32", "evaluation.bootstrap_draws=100", "evaluation.max_new_tokens=16"]
RLHF = ["method=rlhf", "model=demo", "data=demo_preference", "method.rewards.model.steps=20"]
RLHF += ["method.max_completion_tokens=16", "method.eval_prompts=16"]
DSS = ["method=dss", "model=demo", "data=demo_rationale"]
COMMANDS = {"rlhf": (RLHF, ("rlhf", "rlhf-reward")), "dss": (DSS, ("dss",))}
"""By name: the arguments, and the models that must be in the registry afterwards."""
POLL_SECONDS = 0.2


def run(step: Step) -> None:
    if not step.on_gpu:
        return step.add(**checked())
    running = {name: start(name, arguments, step.scratch) for name, (arguments, _) in COMMANDS.items()}
    began = time.monotonic()
    while running:
        time.sleep(POLL_SECONDS)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            found = ended(name, running.pop(name).returncode, step.scratch)
            step.add(**{name: found | {"seconds": time.monotonic() - began}})


def start(name: str, arguments: list[str], scratch: Path) -> subprocess.Popen[bytes]:
    """`raytune-llm train`, in a process of its own."""
    own = [f"name={name}", f"home={scratch}/home-{name}", "scaling.use_gpu=true"]
    command = [sys.executable, "-m", "raytune_llm.cli", "train", *arguments, *SMALL, *own]
    return subprocess.Popen(command, env=os.environ)


def ended(name: str, status: int, scratch: Path) -> dict[str, Any]:
    """Whether it left what it promises, and its versions' metrics."""
    from raytune_llm.stores.registry import Registry

    versions = Registry(f"{scratch}/home-{name}/registry").list()
    names = {version.reference.split("@")[0] for version in versions}
    metrics = {version.reference: version.card.metrics for version in versions}
    return {"right": status == 0 and set(COMMANDS[name][1]) <= names, "status": status, "metrics": metrics}


def checked() -> dict[str, Any]:
    """Compose each command's job."""
    from raytune_llm.jobs.config import load

    jobs = {name: load("train", [*arguments, *SMALL, f"name={name}"]) for name, (arguments, _) in COMMANDS.items()}
    return {name: {"right": None, "composed": type(job.method).__name__} for name, job in jobs.items()}


if __name__ == "__main__":
    main(run)
