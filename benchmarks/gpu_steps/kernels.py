"""Where the GPU's time goes: the kernels of one packed step, the largest first."""

from __future__ import annotations

from typing import Any

import torch

from .llama import make_base, make_config
from .packed_speed import COMPARED_LOAD, SMOKE_LOADS, packed
from .step import Step, main
from .timing import fresh_memory, synchronize

ROWS = 15


def run(step: Step) -> None:
    for shape in ("tiny",) if step.smoke else ("1b", "8b"):
        base = make_base(make_config(shape, use_cache=False), step.device)
        step.add(**{f"kernels_{shape}": largest_kernels(base, step)})
        del base
        fresh_memory(step.device)


def largest_kernels(base: Any, step: Step) -> list[dict[str, Any]]:
    """Name, calls and milliseconds of the kernels (on the CPU: operators) of one step of all slots."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if step.on_gpu else []
    load = SMOKE_LOADS[0] if step.smoke else COMPARED_LOAD
    with packed(base, load, step.device) as (pack, _):
        for _ in range(2):
            pack.step()
        with torch.profiler.profile(activities=activities) as profile:
            pack.step()
            synchronize(step.device)
    key = "self_device_time_total" if step.on_gpu else "self_cpu_time_total"
    kind = torch.autograd.DeviceType.CUDA if step.on_gpu else torch.autograd.DeviceType.CPU
    own = [average for average in profile.key_averages() if average.device_type == kind]
    averages = sorted(own, key=lambda average: -getattr(average, key))[:ROWS]
    return [
        {"name": average.key[:90], "calls": average.count, "milliseconds": round(getattr(average, key) / 1e3, 3)}
        for average in averages
    ]


if __name__ == "__main__":
    main(run)
