"""Seconds, rates and memory of a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """One call, to the end of what it started."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(function: Callable[[], Any], device: torch.device, *, warm_up: int, at_most: float) -> float:
    """The median of 2 to 9 calls that take about `at_most` seconds in all."""
    for _ in range(warm_up):
        function()
    times = [seconds_of(function, device)]
    while len(times) < 2 or (len(times) < 9 and sum(times) + times[-1] < at_most):
        times.append(seconds_of(function, device))
    return statistics.median(times)


def fresh_memory(device: torch.device) -> None:
    """Nothing cached, peak counted from now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def busy_seconds(function: Callable[[], Any], device: torch.device) -> float | None:
    """How long the GPU runs kernels during a call, kernels at the same time counted once; None on the CPU."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        synchronize(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    return covered(spans) / 1e6


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of sorted spans."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
