"""Routes through the slots of an adapter stack, for rows whose adapters are any of its slots or the base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from torch import Tensor

from raytune_llm.models.adapter_route import Route
from raytune_llm.models.decoding.step import AnyRoute
from raytune_llm.models.grouped_lora import GroupedRoute, can_group
from raytune_llm.models.masked_lora import MaskedAdapters, MaskedRoute
from raytune_llm.models.row_lora import RowKernels, RowRoute, row_kernels
from raytune_llm.models.stacked_lora import AdapterStack

MOST_MASKED = 16
"""Adapters that rows are multiplied with although each goes through one of them only."""


class StackRoutes:
    """Of one stack, whose slots may be written as long as `forget` is called."""

    layout_version = 0
    """Routes stay valid."""
    fixed_for: object = None
    """Whose rows the fixed routes were last made for."""

    def __init__(self, stack: AdapterStack) -> None:
        self._stack = stack
        self.is_grouped = can_group(stack.table, self._all_layers().layers)
        self._fixed: dict[tuple[type, int, int], GroupedRoute | RowRoute] = {}
        """Routes that stay where they are, by kind, number of rows and rank."""
        self._gathered: dict[int, Tensor] = {}
        """The memory of such routes where they are copies, by number of rows."""
        self._masked: tuple[tuple[int, ...], MaskedAdapters | None] = ((), None)
        """The last copies, and of which slots; None where they can't be multiplied together."""

    def forget(self) -> None:
        """Drop copies of slots' weights: a slot was written."""
        self._masked = ((), None)

    def route(self, slots: Sequence[int | None]) -> AnyRoute:
        """For rows through these slots, in order; None is the base."""
        places = self._places(slots)
        runs = [(slot, len(list(run))) for slot, run in itertools.groupby(places)]
        if all(slot == self._stack.capacity for slot, _ in runs):
            return None
        if len(runs) == 1:
            return self._stack.span(places[0], places[0] + 1)
        if self.is_grouped:
            return GroupedRoute(self._all_layers().layers, places)
        # equal runs of neighbours share one copy of their adapter
        if len({length for _, length in runs}) == 1 and runs[0][1] > 1:
            return self._stack.gather([slot for slot, _ in runs])[0]
        return self._masked_route(places) or self._stack.gather(places)[0]

    @cached_property
    def row_kernels(self) -> RowKernels | None:
        """What multiplies rows of one token, each with its own adapter; None where that has no kernels."""
        return row_kernels(self._stack.table, self._stack.max_lora_rank)

    def fixed_route(self, slots: Sequence[int | None]) -> tuple[AnyRoute, int]:
        """The same for rows of one token, at addresses that stay while the number of rows and the rank do, the rank
        with it; 0 without adapters. Valid until the next call."""
        places = self._places(slots)
        if all(place == self._stack.capacity for place in places):
            return None, 0
        kind: type = GroupedRoute if self.row_kernels is None else RowRoute
        if kind is GroupedRoute and not self.is_grouped:
            return self._copied_route(places)
        layers = self._all_layers().layers
        key = kind, len(places), layers[0].a.shape[1]
        if key in self._fixed:
            self._fixed[key].update(places)
        elif self.row_kernels is None:
            self._fixed[key] = GroupedRoute(layers, places)
        else:
            self._fixed[key] = RowRoute(layers, places, self.row_kernels)
        return self._fixed[key], key[2]

    def _copied_route(self, places: Sequence[int]) -> tuple[Route, int]:
        """Over copies of the slots' weights, one a row, with their rank."""
        if len(places) not in self._gathered:
            self._gathered[len(places)] = self._stack.table.new_empty(len(places), self._stack.layout.size)
        route = self._stack.gather(places, out=self._gathered[len(places)])[0]
        return route, route.layers[0].a.shape[1]

    def routed(self, route: AnyRoute) -> AbstractContextManager[None]:
        """Forward passes inside the context take this route."""
        return self._stack.routed(route)

    def _masked_route(self, places: Sequence[int]) -> MaskedRoute | None:
        """None where adapters are too many, or not finite."""
        used = tuple(sorted(set(places) - {self._stack.capacity}))
        if len(used) > MOST_MASKED:
            return None
        if used != self._masked[0]:
            layers, ranks = self._stack.gather(used)[0].layers, [self._stack.lora_ranks[slot] for slot in used]
            try:
                self._masked = used, MaskedAdapters(layers, used, ranks)
            except ValueError:
                self._masked = used, None
        adapters = self._masked[1]
        return None if adapters is None else adapters.route(places)

    def _places(self, slots: Sequence[int | None]) -> list[int]:
        """Slots, with that of the base for None."""
        return [self._stack.capacity if slot is None else slot for slot in slots]

    def _all_layers(self) -> Route:
        """All slots and the base, of the largest rank among them."""
        return self._stack.span(0, self._stack.capacity + 1)
