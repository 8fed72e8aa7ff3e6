"""An LRU cache of LoRA adapters in the rows of one stack.

The stack is as wide as the adapters loaded so far; one with further modules or of a larger rank has it rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from raytune_llm.models.adapter_set import filled_up, lora_rank
from raytune_llm.models.decoding.routes import StackRoutes
from raytune_llm.models.decoding.step import AnyRoute
from raytune_llm.models.lora_weights import Weights
from raytune_llm.models.stacked_lora import RANK_STEP, AdapterStack


class AdapterCache:
    """At most `capacity` adapters on a causal model, whose layers are wrapped in place. Not thread-safe."""

    def __init__(self, model: nn.Module, *, capacity: int) -> None:
        self.model = model
        self._capacity = capacity
        self._stack: AdapterStack | None = None
        self._slots: dict[str, int] = {}
        """By adapter, the least recently used first."""
        self._users: dict[str, int] = {}
        """Answers that pin an adapter's row."""
        self.num_loads = 0
        """Adapters written to a row so far."""
        self.layout_version = 0
        """Routes of earlier versions are invalid."""
        self.fixed_for: object = None
        """Whose rows the fixed routes were last made for."""
        self._routes: StackRoutes | None = None

    def __contains__(self, id: str) -> bool:
        return id in self._slots

    @property
    def resident(self) -> tuple[str, ...]:
        """Adapters that have a row, the least recently used first."""
        return tuple(self._slots)

    def acquire(self, id: str, read: Callable[[], Weights]) -> bool:
        """Pin an adapter's row for one more answer, loading it if need be; False when all rows are pinned by others."""
        if id not in self._slots:
            slot = self._free_slot()
            if slot is None:
                return False
            self._write(slot, read())
            self._slots[id] = slot
        self._slots[id] = self._slots.pop(id)
        self._users[id] = self._users.get(id, 0) + 1
        return True

    def release(self, id: str) -> None:
        """Unpin a row for one answer; the adapter stays until its row is needed."""
        self._users[id] -= 1
        if not self._users[id]:
            del self._users[id]

    def offer(self, id: str, weights: Weights) -> None:
        """Load an adapter if a row is free, so that its first answer needn't wait."""
        if id not in self._slots and len(self._slots) < self._capacity:
            slot = self._free_slot()
            assert slot is not None
            self._write(slot, weights)
            self._slots[id] = slot

    def forget(self, id: str) -> None:
        """Free an adapter's row, which no answer may be using."""
        assert id not in self._users
        slot = self._slots.pop(id, None)
        if slot is not None and self._stack is not None:
            self._stack.clear(slot)

    def route(self, ids: Sequence[str | None]) -> AnyRoute:
        """For rows through these adapters, None for the base. All of them must be pinned."""
        return None if self._routes is None else self._routes.route(self._slots_of(ids))

    def fixed_route(self, ids: Sequence[str | None]) -> tuple[AnyRoute, int]:
        """The same for rows of one token, at addresses that stay while the number of rows and the rank do, the rank
        with it; 0 without adapters. Valid until the next call."""
        return (None, 0) if self._routes is None else self._routes.fixed_route(self._slots_of(ids))

    def routed(self, route: AnyRoute) -> AbstractContextManager[None]:
        """Forward passes inside the context take this route."""
        return nullcontext() if self._stack is None else self._stack.routed(route)

    def _slots_of(self, ids: Sequence[str | None]) -> list[int | None]:
        return [None if id is None else self._slots[id] for id in ids]

    def _free_slot(self) -> int | None:
        taken = set(self._slots.values())
        free = next((slot for slot in range(self._capacity) if slot not in taken), None)
        if free is not None:
            return free
        unused = next((id for id in self._slots if id not in self._users), None)
        return None if unused is None else self._slots.pop(unused)

    def _write(self, slot: int, weights: Weights) -> None:
        rank = lora_rank(weights)
        held = {} if self._stack is None else self._stack.layers
        if self._stack is None or rank > self._stack.max_lora_rank or not weights.keys() <= held.keys():
            self._widen([*held, *(name for name in weights if name not in held)], rank)
        assert self._stack is not None
        assert self._routes is not None
        self._routes.forget()
        self._stack.write(slot, filled_up(weights, self._stack.layers), 1.0)
        self.num_loads += 1

    def _widen(self, names: Sequence[str], lora_rank: int) -> None:
        """Rebuild the stack with these modules and room for this rank; where memory doesn't suffice, as it was."""
        old = self._stack
        if old is None:
            self._build(names, lora_rank, {})
            return
        lora_rank, old_names, old_rank = max(lora_rank, old.max_lora_rank), list(old.layers), old.max_lora_rank
        kept = {slot: old.read(slot, old.lora_ranks[slot]) for slot in self._slots.values()}
        old.remove()
        # both tables needn't fit next to each other
        del old
        self._stack = None
        try:
            self._build(names, lora_rank, kept)
        except RuntimeError:
            self._build(old_names, old_rank, kept)
            raise

    def _build(self, names: Sequence[str], lora_rank: int, kept: dict[int, Weights]) -> None:
        self._routes = None
        self.layout_version += 1
        if next(self.model.parameters()).device.type == "cuda":
            lora_rank = -(-lora_rank // RANK_STEP) * RANK_STEP  # grouped_mm wants it
        self._stack = AdapterStack(self.model, names, capacity=self._capacity, max_lora_rank=lora_rank)
        self._routes = StackRoutes(self._stack)
        for slot, weights in kept.items():
            self._stack.write(slot, filled_up(weights, self._stack.layers), 1.0)
