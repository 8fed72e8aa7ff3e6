"""Dropout before the adapters, drawn for each slot from its own generator, as the nn.Dropout of an unpacked trial.

A slot's draw covers its own rows, padded to its own longest sequence; other slots and their lengths don't touch the
stream. On the CPU it is bit for bit nn.Dropout's under torch.manual_seed(seed); CUDA's nn.Dropout numbers its draws
differently, so there the stream is reproducible but not that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from raytune_llm.training.packed.batches import Batch
from raytune_llm.training.packed.slot import Slot


class SlotNoise:
    """The noise of one forward pass. `replay` draws it again for activation checkpointing."""

    def __init__(
        self,
        rates: Sequence[float],
        generators: Sequence[torch.Generator],
        lengths: dict[int, list[int]],
        *,
        replayable: bool,
    ) -> None:
        """lengths: padded length of an input → own length of each slot's rows. Encoder and decoder inputs differ in
        it."""
        self._rates, self._generators, self._lengths = rates, generators, lengths
        self._states: dict[int, list[Tensor]] | None = {} if replayable else None
        self._replaying = False

    def draw(self, layer: int, x: Tensor) -> Tensor:
        """0 or 1/(1−p) of x's shape, (B, T, in); 0 beyond a slot's own length."""
        if self._states is not None:
            if self._replaying:
                for generator, state in zip(self._generators, self._states[layer], strict=True):
                    generator.set_state(state)
            else:
                self._states[layer] = [generator.get_state() for generator in self._generators]
        noise = torch.zeros_like(x)
        rows = noise.view(len(self._rates), -1, x.shape[-2], x.shape[-1])
        for slot, rate, generator, length in zip(
            rows, self._rates, self._generators, self._lengths[x.shape[-2]], strict=True
        ):
            own = torch.empty(slot.shape[0], length, slot.shape[2], dtype=x.dtype, device=x.device)
            slot[:, :length] = own.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
        return noise

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Draws inside repeat the first ones; afterwards the streams are where they were."""
        after = [generator.get_state() for generator in self._generators]
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False
            for generator, state in zip(self._generators, after, strict=True):
                generator.set_state(state)


def slot_noise(slots: Sequence[Slot], batch: Batch, *, replayable: bool) -> SlotNoise | None:
    """Of a pass over equal numbers of rows for each of these slots; None where they have no dropout."""
    if slots[0].spec.rows_per_pass is None:
        return None
    lengths = {}
    for own, width in ((batch.label_lengths, batch.labels.shape[1]), (batch.lengths, batch.input_ids.shape[1])):
        lengths[width] = own.reshape(len(slots), -1).max(1).tolist()
    rates, generators = [slot.spec.dropout for slot in slots], [slot.generator for slot in slots]
    return SlotNoise(rates, generators, lengths, replayable=replayable)


def resume_stream(generator: torch.Generator, saved: Tensor, *, seed: int) -> None:
    """Continue a saved stream; that of another kind of device starts anew, from the seed."""
    if len(saved) == len(generator.get_state()):
        generator.set_state(saved)
    else:
        generator.manual_seed(seed)
