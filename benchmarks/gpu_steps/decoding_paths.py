"""One engine on several ways through its adapters and its base, in turn, and where the time of its steps goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raytune_llm.models.decoding.fused import fuse_decoding
from raytune_llm.models.decoding.graphs import CUDACapture, Graphs
from raytune_llm.serving.engine.base import Engine

from .timing import synchronize

KERNELS = 15


@dataclass(frozen=True)
class Path:
    """How steps go through adapters (row kernels, else grouped products, else copies), and whether pointwise parts are
    fused."""

    rows: bool = True
    groups: bool = True
    fused: bool = True


class Paths:
    """An engine without fused parts that takes one path at a time. Graphs of the others stay as they were recorded."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.engine = engine
        self._resident: Any = engine._resident
        self._device, self._on_gpu = device, device.type == "cuda"
        self._graphs: dict[tuple[Path, int], Graphs] = {}
        routes = self._resident.adapter_cache._routes
        self._offered = None if routes is None else (routes.row_kernels, routes.is_grouped)

    @property
    def _rows(self) -> Any:
        """Those of short answers, which all of these are."""
        return self._resident._batch.rows[0]

    @contextmanager
    def taken(self, path: Path) -> Iterator[None]:
        """Answers inside take this path; nothing may be decoding at the ends. Parts are fused on a GPU only."""
        rows, routes = self._rows, self._resident.adapter_cache._routes
        if self._offered is not None:
            kernels, is_grouped = self._offered
            routes.row_kernels, routes.is_grouped = kernels if path.rows else None, is_grouped and path.groups
        key = path, rows.kv_cache.version
        if key not in self._graphs:
            self._graphs[key] = Graphs(CUDACapture(self._device) if self._on_gpu else None)
        rows.decoding.graphs = self._graphs[key]
        with ExitStack() as undo:
            if path.fused and self._on_gpu:
                undo.enter_context(fuse_decoding(self._resident._batch._model))
            yield
        # buffers that moved meanwhile had their graphs recorded anew
        self._graphs[path, rows.kv_cache.version] = rows.decoding.graphs

    def facts(self) -> dict[str, Any]:
        """What is recorded now, and what the machine offers."""
        facts: dict[str, Any] = {"graphs": len(self._rows.decoding.graphs)}
        if self._offered is not None:
            facts |= {"has_row_kernels": self._offered[0] is not None, "is_grouped": self._offered[1]}
        return facts


def fusing_figures(engine: Engine, device: torch.device) -> dict[str, Any]:
    """Seconds that fusing adds to the start of a replica, the first time on this machine; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    resident: Any = engine._resident
    start = time.perf_counter()
    fuse_decoding(resident._batch._model).close()
    return {"fusing_seconds": time.perf_counter() - start, "compiled_parts": compiled_parts()}


def compiled_parts() -> int:
    """Graphs that torch.compile has made in this process; more after decoding means that requests waited for some."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def largest_kernels(decode: Callable[[int], Any], short: int, long: int, device: torch.device) -> list[dict[str, Any]]:
    """The kernels (on the CPU: operators) of one decoding step, the largest first: name, calls and milliseconds.

    decode: answers of so many tokens; the difference of two lengths leaves the reading of prompts out.
    """
    for length in (short, long):
        decode(length)
    few, many = profiled(lambda: decode(short), device), profiled(lambda: decode(long), device)
    steps = long - short
    found = []
    for name, (calls, milliseconds) in many.items():
        few_calls, few_milliseconds = few.get(name, (0, 0.0))
        found.append((name, (calls - few_calls) / steps, (milliseconds - few_milliseconds) / steps))
    total = round(sum(milliseconds for _, _, milliseconds in found), 4)
    largest = sorted(found, key=lambda kernel: -kernel[2])[:KERNELS]
    lines = [{"name": name[:90], "calls": calls, "milliseconds": round(ms, 4)} for name, calls, ms in largest]
    return [{"name": "all", "milliseconds": total}, *lines]


def profiled(function: Callable[[], Any], device: torch.device) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each kernel, of whatever thread."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        function()
        synchronize(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    own = [average for average in profile.key_averages() if average.device_type == kind]
    return {average.key: (average.count, getattr(average, key) / 1e3) for average in own}
