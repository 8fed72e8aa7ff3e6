"""A trial between two steps, copied to the host, so that its files are written while its pack steps on.

On a GPU the copies go to pinned memory in the order of the stream: the host doesn't wait for them, and the next update
of the rows waits until they are made. Whoever reads them waits for `copied`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raytune_llm.models.lora_weights import RowLayout, Weights
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.slot import Slot
from raytune_llm.training.packed.trial_state import TrialState


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Read by any thread."""

    spec: Hyperparameters
    step: int
    """Optimizer steps done."""
    generator: Tensor
    """State of the dropout stream."""
    layout: RowLayout
    rows: Mapping[str, Tensor]
    """theta and, where they were asked for, m and v: (P,) each, on the CPU."""
    copied: torch.cuda.Event | None
    """When the rows are complete; None = they are."""

    def weights(self) -> Weights:
        """The adapter, in fp32 (fp64)."""
        return self._adapter("theta")

    def heads(self) -> dict[str, Tensor]:
        """What was trained in addition to it, flat."""
        return self._heads("theta")

    def state(self) -> TrialState:
        """What resuming needs, of a snapshot that has m and v."""
        tensors = {"generator": self.generator}
        for key in ("theta", "m", "v"):
            for name, (a, b) in self._adapter(key).items():
                tensors[f"{key}.a.{name}"], tensors[f"{key}.b.{name}"] = a, b
            for name, head in self._heads(key).items():
                tensors[f"{key}.head.{name}"] = head
        return TrialState(spec=self.spec, step=self.step, tensors=tensors)

    def _adapter(self, key: str) -> Weights:
        return self.layout.unpack(self._row(key), self.spec.lora_rank)

    def _heads(self, key: str) -> dict[str, Tensor]:
        views = self.layout.head_views(self._row(key).unsqueeze(0))
        return {name: view[0].clone() for name, view in views.items()}

    def _row(self, key: str) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return self.rows[key]


def take_snapshot(slot: Slot, layout: RowLayout, rows: Mapping[str, Tensor]) -> Snapshot:
    """Copy a slot's rows of the pack's tables, (P,) each, as they are when the device comes to it."""
    copies = {key: to_host(row) for key, row in rows.items()}
    copied = None
    if any(row.is_cuda for row in rows.values()):
        copied = torch.cuda.Event(blocking=True)
        copied.record()
    return Snapshot(
        spec=slot.spec,
        step=slot.step,
        generator=slot.generator.get_state(),
        layout=layout,
        rows=copies,
        copied=copied,
    )


def to_host(row: Tensor) -> Tensor:
    """A copy in the host's memory; of a GPU's tensor complete only when its stream comes to it."""
    if not row.is_cuda:
        return row.clone()
    try:
        pinned = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    except RuntimeError:
        return row.cpu()  # the host has no more memory to pin
    return pinned.copy_(row, non_blocking=True)
