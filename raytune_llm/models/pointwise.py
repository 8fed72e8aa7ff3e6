"""The pointwise parts of a base, each fused into one kernel by torch.compile: norms, activations, rotary positions.

Between its matrix products a block of a Llama-like base runs some thirty small kernels, which read and write all hidden
states again and again. Only these parts are compiled: matrix products, attention and adapters run as they are. Left
out: bases that are built otherwise, whose parts stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
Forward = Callable[[Any, Tensor], Tensor]
ROTARY = "apply_rotary_pos_emb"
"""A function of the file that a rotary model of transformers is in."""
GATED_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")
TRIED_ROWS = 3


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one kernel for any number of rows."""
    return torch.compile(function, dynamic=True)


def fuse_pointwise(model: nn.Module, compile: Compile = compiled) -> ExitStack:
    """Replace these parts of a model until the returned stack is closed.

    One part of each kind is compiled and compared with what it replaces first. Raises what the compiler raises, e.g.
    where there is none; AssertionError where a part differs.
    """
    kinds = {type(module): module for module in model.modules()}
    found = {kind: _fused(module, compile) for kind, module in kinds.items()}
    fused = {kind: forward for kind, forward in found.items() if forward is not None}
    for kind, forward in fused.items():
        _check(kinds[kind], forward)
    with ExitStack() as undo:
        for module in model.modules():
            if type(module) in fused:
                undo.enter_context(_replaced(module, "forward", MethodType(fused[type(module)], module)))
        file: Any = sys.modules[type(model).__module__]
        if hasattr(file, ROTARY):
            undo.enter_context(_replaced(file, ROTARY, compile(getattr(file, ROTARY))))
        return undo.pop_all()


def _fused(module: nn.Module, compile: Compile) -> Forward | None:
    """The forward pass of a kind of module with its pointwise part compiled; None where it isn't a known one."""
    if type(module).__name__.endswith("RMSNorm"):
        norm = compile(type(module).forward)
        # Rows of one matrix: shapes of fewer kinds are compiled.
        return lambda self, x: norm(self, x.reshape(-1, x.shape[-1])).view(x.shape)
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in GATED_MLP):
        return None
    gated = compile(_gated)

    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        mixed = gated(self.act_fn, gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1]))
        return self.down_proj(mixed.view(gate.shape))

    return forward


def _gated(activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _check(module: Any, fused: Forward) -> None:
    """Compare a module's own forward and backward pass with the fused ones on a few random rows."""
    weight = next(module.parameters())
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(1, TRIED_ROWS, weight.shape[-1], generator=generator, device=weight.device, dtype=weight.dtype)
    found = []
    for forward in (type(module).forward, fused):
        inputs = x.clone().requires_grad_()
        y = forward(module, inputs)
        found.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)))
    torch.testing.assert_close(found[1], found[0])


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object or a file, set inside the context."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
