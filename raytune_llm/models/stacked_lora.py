"""Many LoRA adapters on one frozen base: the forward pass that packed training and serving share.

    y = x Wᵀ + b + s · (x Aᵀ) B         LoRA: Hu et al., 2021, arXiv 2106.09685

All scalars of an adapter lie in one row of a flat table, so that joining, leaving, clipping and the optimizer are
operations on rows; each layer's A and B are views into it. What lies beyond an adapter's own rank is 0: its gradients
are exactly 0, so it stays 0. A `Route` says which adapter each row of the next forward pass goes
through: equal numbers of rows for each of some slots (training, evaluation), or any slot for each row (decoding).
Without a route the layers are the plain base. Rows never mix, so a NaN adapter spoils its own rows only.

Passes read a table in the base's dtype, where B is s · B, rounded once from the master: what a slot computes doesn't
depend on its neighbours' scales. The adapter's product is made first, and the large one of the frozen weight
accumulates on it in the matrix unit's own precision.

In training each layer is one autograd node that adds the gradients of A and s · B straight to their row; nothing flows
to the base. Left out: DoRA, biases in adapters, layers other than nn.Linear.

Shape letters: B rows of a batch, T tokens, S slots of a route, C = B / S rows each, R rank, P scalars of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from raytune_llm.models.adapter_route import HeadViews, LayerViews, Noise, Route, Views
from raytune_llm.models.fp32_head import FP32Head
from raytune_llm.models.grouped_lora import GroupedRoute
from raytune_llm.models.lora_weights import RowLayout, Weights
from raytune_llm.models.masked_lora import MaskedRoute
from raytune_llm.models.row_lora import RowRoute

RANK_STEP = 8
"""Passes compute ranks in multiples of this, as matrix units like them."""
INDICES_KEPT = 512


class StackedLinear(nn.Module):
    """A frozen nn.Linear with adapters in parallel; `weight`, `bias` and the sizes are the base's."""

    def __init__(self, base: nn.Linear, stack: AdapterStack, index: int) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.index = index
        self._is_fp32 = isinstance(base, FP32Head)
        # A plain attribute of a list keeps the stack out of the module tree.
        self._stack = [stack]

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, in_features) or (B·T, in_features), rows in the order of the route."""
        stack, base = self._stack[0], self.base
        route = stack.route
        if stack.mixed is not None:
            return stack.mixed.linear(x, base, self.index)
        if route is None:
            return base(x)
        if torch.is_grad_enabled():
            return _Stacked.apply(x, stack.anchor, base.weight, base.bias, route, self.index)
        if self._is_fp32:
            return base(x) + _fp32_product(x, route.layers[self.index])
        return _forward(x, base.weight, base.bias, route, self.index)[0]


def _fp32_product(x: Tensor, views: LayerViews) -> Tensor:
    """(x Aᵀ) B in fp32, (…, out_features)."""
    h = torch.bmm(x.reshape(len(views.a), -1, x.shape[-1]).float(), views.a.transpose(1, 2).float())
    return torch.bmm(h, views.b.float()).view(*x.shape[:-1], -1)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, route: Route, index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y of x's shape, h = x Aᵀ, (S, C·T, R), and the noise of x's shape that was drawn for it."""
    views = route.layers[index]
    noise = None if route.noise is None else route.noise.draw(index, x)
    dropped = x if noise is None else x * noise
    h = torch.bmm(dropped.reshape(route.num_slots, -1, x.shape[-1]), views.a.transpose(1, 2))
    y = torch.bmm(h, views.b) if bias is None else torch.baddbmm(bias, h, views.b)
    y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.T)
    return y.view(*x.shape[:-1], y.shape[-1]), h, noise


class _Stacked(torch.autograd.Function):
    """StackedLinear.forward whose backward adds to grad_a and grad_b itself; `anchor` makes autograd record it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor | None, route: Route, index: int
    ) -> Tensor:
        y, h, noise = _forward(x, weight, bias, route, index)
        ctx.save_for_backward(x, h, *(() if noise is None else (noise,)))
        ctx.weight, ctx.views = weight, route.layers[index]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *noise = ctx.saved_tensors
        views, slots = ctx.views, len(h)
        dropped = (x * noise[0] if noise else x).reshape(slots, -1, x.shape[-1])
        dy = dy.reshape(slots, -1, dy.shape[-1])
        dh = torch.bmm(dy, views.b.transpose(1, 2))
        _accumulate(views.grad_b, h, dy)
        _accumulate(views.grad_a, dh, dropped)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        dx = torch.bmm(dh, views.a)
        if noise:
            dx.mul_(noise[0].view(dx.shape))
        dx.view(-1, x.shape[-1]).addmm_(dy.view(-1, dy.shape[-1]), ctx.weight)
        return dx.view(x.shape), None, None, None, None, None


def _accumulate(grad: Tensor, left: Tensor, right: Tensor) -> None:
    """grad += leftᵀ right for each slot, in grad's own precision."""
    # baddbmm_ would do a strided grad matrix by matrix.
    grad.add_(torch.bmm(left.transpose(1, 2), right))


class AdapterStack:
    """Room for `capacity` adapters on a model whose layers `names` it wraps in place.

    Row `capacity` is never written: it is the adapter that changes nothing, for rows that go through the base.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        capacity: int,
        max_lora_rank: int,
        trainable: bool = False,
        heads: Mapping[str, int] | None = None,
    ) -> None:
        """heads: what every adapter has in addition to its layers, name → number of scalars."""
        model.requires_grad_(False)
        self.model, self.capacity, self.max_lora_rank = model, capacity, max_lora_rank
        self.layers: dict[str, StackedLinear] = {}
        for index, name in enumerate(names):
            module = model.get_submodule(name)
            if not isinstance(module, nn.Linear) or type(module) not in (nn.Linear, FP32Head):
                raise ValueError(f"adapter target {name} is a {type(module).__name__}; stacked adapters need nn.Linear")
            self.layers[name] = StackedLinear(module, self, index)
        sizes = {name: (layer.in_features, layer.out_features) for name, layer in self.layers.items()}
        self.layout = RowLayout(sizes, max_lora_rank, heads)
        weight = next(iter(self.layers.values())).weight
        self.device, self.dtype = weight.device, weight.dtype
        self._master = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.table = torch.zeros(capacity + 1, self.layout.size, dtype=self.dtype, device=self.device)
        """What passes compute with, (capacity + 1, P)."""
        self.theta: Tensor | None = None
        """Master weights of a trainable stack, (capacity, P)."""
        self.grad: Tensor | None = None
        """Of the master weights, (capacity, P)."""
        if trainable:
            self.theta = torch.zeros(capacity, self.layout.size, dtype=self._master, device=self.device)
            self.grad = torch.zeros_like(self.theta)
        self.scales = torch.zeros(capacity, 1, dtype=self._master, device=self.device)
        """s of each slot."""
        self.lora_ranks = [0] * (capacity + 1)
        self.anchor = torch.zeros((), device=self.device, requires_grad=trainable)
        self.route: Route | None = None
        self.mixed: GroupedRoute | MaskedRoute | RowRoute | None = None
        """Taken in place of a route."""
        self._spans: dict[tuple[int, int, int], Views] = {}
        # kept: each copy to the device is waited for
        self._index = lru_cache(INDICES_KEPT)(lambda slots: torch.tensor(slots, device=self.device))
        for name, layer in self.layers.items():
            _replace(model, name, layer)

    def remove(self) -> None:
        """Give the model its own linear layers back."""
        for name, layer in self.layers.items():
            _replace(self.model, name, layer.base)

    def write(
        self,
        slot: int,
        weights: Mapping[str, tuple[Tensor, Tensor]],
        scale: float,
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put an adapter in a slot. Raises ValueError when its modules, heads, sizes or rank don't fit."""
        row = self.layout.pack(weights, self._master, heads)
        self.scales[slot], self.lora_ranks[slot] = float(scale), next(iter(weights.values()))[0].shape[0]
        if self.theta is None:
            row[self.layout.b] *= float(scale)
            self.table[slot].copy_(row)
        else:
            self.theta[slot].copy_(row)
            self.refresh(slot, slot + 1)

    def read(self, slot: int, lora_rank: int) -> Weights:
        """The adapter of a slot, on the CPU; of a stack that isn't trainable in the base's dtype, B times its scale."""
        rows = self.table if self.theta is None else self.theta
        return self.layout.unpack(rows[slot].cpu(), lora_rank)

    def clear(self, slot: int) -> None:
        for table in (self.table, self.theta, self.scales):
            if table is not None:
                table[slot].zero_()
        self.lora_ranks[slot] = 0

    def refresh(self, start: int, end: int) -> None:
        """Bring what passes compute with up to date with the master rows [start, end); needed after they change."""
        assert self.theta is not None
        into, theta, b = self.table[start:end], self.theta[start:end], self.layout.b
        into[:, : b.start].copy_(theta[:, : b.start])
        torch.mul(theta[:, b], self.scales[start:end], out=into[:, b])
        into[:, b.stop :].copy_(theta[:, b.stop :])

    def scale_grad(self, count: int) -> None:
        """Turn the gradients of s · B that backward passes left in the first `count` rows into those of B."""
        assert self.grad is not None
        self.grad[:count, self.layout.b].mul_(self.scales[:count])

    def span(self, start: int, end: int, noise: Noise | None = None) -> Route:
        """Equal numbers of rows for each of the slots [start, end), in order; no copy is made."""
        lora_rank = self._lora_rank(range(start, end))
        views = self._spans.get((start, end, lora_rank))
        if views is None:
            grad = None if self.grad is None else self.grad[start:end]
            views = self._views(self.table[start:end], grad, lora_rank)
            self._spans[start, end, lora_rank] = views
        return Route(end - start, views[0], noise, views[1])

    def gather(
        self, slots: Sequence[int], noise: Noise | None = None, out: Tensor | None = None
    ) -> tuple[Route, Tensor | None]:
        """Equal numbers of rows for each of these slots, any and in any order; `capacity` is the base.

        Their rows are copied once for all layers (to `out`, (S, P), if it is given), so keep the route while neither
        slots nor weights change. Returns
        the route and, of a trainable stack, the gradients that a backward pass leaves, (S, P), for `scatter_grad`.
        """
        index = self._index(tuple(slots))
        grad = None
        if self.grad is not None and torch.is_grad_enabled():
            grad = torch.zeros(len(slots), self.layout.size, dtype=self.grad.dtype, device=self.device)
        views = self._views(torch.index_select(self.table, 0, index, out=out), grad, self._lora_rank(slots))
        return Route(len(slots), views[0], noise, views[1]), grad

    def scatter_grad(self, slots: Sequence[int], grad: Tensor) -> None:
        """Add gathered gradients to their rows."""
        assert self.grad is not None
        self.grad.index_add_(0, self._index(tuple(slots)), grad)

    @contextmanager
    def routed(self, route: Route | GroupedRoute | MaskedRoute | RowRoute | None) -> Iterator[None]:
        """Forward passes inside go through this route."""
        before = self.route, self.mixed
        self.route, self.mixed = (route, None) if route is None or isinstance(route, Route) else (None, route)
        try:
            yield
        finally:
            self.route, self.mixed = before

    def _views(self, theta: Tensor, grad: Tensor | None, lora_rank: int) -> Views:
        weights, heads = self.layout.views(theta, lora_rank), self.layout.head_views(theta)
        if grad is None:
            layers = [LayerViews(a, b, None, None) for a, b in weights]
            return layers, {name: HeadViews(head, None) for name, head in heads.items()}
        grads, head_grads = self.layout.views(grad, lora_rank), self.layout.head_views(grad)
        layers = [LayerViews(*pair, *pair_of_grads) for pair, pair_of_grads in zip(weights, grads, strict=True)]
        return layers, {name: HeadViews(head, head_grads[name]) for name, head in heads.items()}

    def _lora_rank(self, slots: Sequence[int]) -> int:
        """The rank that a pass over these slots computes for all of them."""
        largest = max(self.lora_ranks[slot] for slot in slots)
        return min(self.max_lora_rank, -(-max(largest, 1) // RANK_STEP) * RANK_STEP)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
