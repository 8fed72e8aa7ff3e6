"""CUDA graphs of decoding steps: the launches of a step recorded once and replayed by one call.

A step of a small model is bound by what the host does for each of its kernels; a replay does none of it. A graph reads
and writes the addresses that it was recorded with, so it is recorded per set of shapes and only for steps whose numbers
lie in tensors that stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from raytune_llm.models.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

MAX_GRAPHS = 24
"""Graphs kept; each holds some tens of MB of the driver's memory."""

Step = Callable[[], Tensor]
"""A decoding step: returns logits; running it twice is the same as running it once."""
Capture = Callable[[Step, bool], Step]
"""Makes the replay of a step; the flag says that no other replay exists."""


class Graphs:
    """The least recently used graphs are dropped. Without graphs a step runs as it is."""

    def __init__(self, capture: Capture | None) -> None:
        """capture: None, or one that fails, leaves all steps as they are."""
        self._capture = capture
        self._replays: dict[Hashable, Step] = {}
        self._too_large: set[Hashable] = set()
        """Steps for whose graphs there was no memory."""

    def __len__(self) -> int:
        return len(self._replays)

    def run(self, key: Hashable, step: Step) -> Tensor:
        """The step's logits, valid until the next call. key: all that the step's operations depend on, but not the
        numbers in its tensors."""
        if key not in self._replays:
            self._record(key, step)
        if key not in self._replays:
            return step()
        replay = self._replays[key] = self._replays.pop(key)
        return replay()

    def _record(self, key: Hashable, step: Step) -> None:
        if self._capture is None or key in self._too_large:
            return
        try:
            replay = self._capture(step, not self._replays)
        except Exception as error:  # a step that can't be recorded is run without
            self.clear()
            self._too_large.add(key)
            if not is_out_of_memory(error):
                logger.warning("decoding steps can't be recorded as CUDA graphs and run without", exc_info=True)
                self._capture = None
            return
        while len(self._replays) >= MAX_GRAPHS:
            del self._replays[next(iter(self._replays))]
        self._replays[key] = replay

    def clear(self) -> None:
        """Drop all graphs: the tensors that they read have moved."""
        self._replays.clear()
        self._too_large.clear()


class CUDACapture:
    """Records steps on a GPU; graphs that exist together share a memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Step, is_first: bool) -> Step:
        if is_first:  # a pool whose graphs are all gone takes no more
            self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # libraries make their workspaces here, outside of the graph
            step()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        record = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        # a recording that fails doesn't leave its stream by itself
        with torch.cuda.stream(self._stream), record:
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
