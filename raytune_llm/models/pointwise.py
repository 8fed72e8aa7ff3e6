"""The pointwise parts of a base, each fused into one kernel by torch.compile: norms, activations, rotary positions.

Between its matrix products a block of a Llama-like base runs some thirty small kernels, which read and write all hidden
states again and again. Only these parts are compiled: matrix products, attention and adapters run as they are. Left
out: bases that are built otherwise, whose parts stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from raytune_llm.errors import first_line

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
Forward = Callable[[Any, Tensor], Tensor]
ROTARY = "apply_rotary_pos_emb"
"""A function of the file that a rotary model of transformers is in."""
GATED_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")
TRIED_ROWS = 3


class CompileError(RuntimeError):
    """A part can't be compiled here, or isn't the same then."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one kernel for any number of rows."""
    return torch.compile(function, dynamic=True)


def compiled_and_compared(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function compiled, once it has given the same on these arguments. Raises CompileError."""
    fused = compiled(function)
    try:
        torch.testing.assert_close(fused(*arguments), function(*arguments))
    except Exception as error:  # whatever the compiler's backend raises
        raise CompileError(f"torch.compile of {function.__name__} failed: {first_line(error)}") from error
    return fused


def fuse_pointwise(model: nn.Module, compile: Compile = compiled, *, with_gradients: bool = True) -> ExitStack:
    """Replace these parts of a model until the returned stack is closed.

    One part of each kind is compiled and compared with what it replaces first, `with_gradients` or by values alone.
    Raises CompileError, with nothing replaced, when that fails.
    """
    kinds = {type(module): module for module in model.modules()}
    found = {kind: _fused(module, compile) for kind, module in kinds.items()}
    fused = {kind: forward for kind, forward in found.items() if forward is not None}
    for kind, forward in fused.items():
        module, weight = kinds[kind], next(kinds[kind].parameters())
        x = _random((1, TRIED_ROWS, weight.shape[-1]), weight)
        _compare(kind.__name__, partial(kind.forward, module), partial(forward, module), (x,), with_gradients)
    file = sys.modules[type(model).__module__]
    rotary = getattr(file, ROTARY, None)
    undo = ExitStack()
    if rotary is not None:
        setattr(file, ROTARY, _fused_rotary(rotary, next(model.parameters()), compile, with_gradients))
        undo.callback(setattr, file, ROTARY, rotary)
    for module in model.modules():
        if type(module) in fused:
            module.forward = MethodType(fused[type(module)], module)
            undo.callback(delattr, module, "forward")
    return undo


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


def _fused_rotary(
    rotary: Callable[..., Any], like: Tensor, compile: Compile, with_gradients: bool
) -> Callable[..., Any]:
    """The function compiled, and compared on queries and keys of a few heads."""
    fused = compile(rotary)
    q, k = _random((2, 2, TRIED_ROWS, 16), like), _random((2, 1, TRIED_ROWS, 16), like)
    angles = _random((2, TRIED_ROWS, 16), like)
    cos, sin = angles.cos(), angles.sin()
    pair = partial(rotary, cos=cos, sin=sin), partial(fused, cos=cos, sin=sin)
    _compare(rotary.__name__, *pair, (q, k), with_gradients)
    return fused


def _compare(
    name: str,
    own: Callable[..., Any],
    fused: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    with_gradients: bool,
) -> None:
    """Compare the values, and the gradients too, of two functions. Raises CompileError where they differ by more than
    rounding, or the compiled one can't be run."""
    allowed, results = 4 * torch.finfo(inputs[0].dtype).eps, _values_and_gradients if with_gradients else _values
    try:
        for one, other in zip(*(results(function, inputs) for function in (own, fused)), strict=True):
            distance = float((other - one).norm() / one.norm())
            if not distance <= allowed:
                raise ValueError(f"it differs by {distance:.2g} of its size")
    except Exception as error:  # whatever the compiler's backend raises
        raise CompileError(f"torch.compile of {name} failed: {first_line(error)}") from error


def _values(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    outputs = function(*inputs)
    return [*outputs] if isinstance(outputs, tuple) else [outputs]


def _values_and_gradients(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [_random(tuple(output.shape), output, seed=1) for output in outputs]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


def _random(shape: tuple[int, ...], like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
