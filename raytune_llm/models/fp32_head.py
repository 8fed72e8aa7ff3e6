"""Logits in fp32 from a base in half precision.

A head computes in bf16 with fp32 sums and rounds the result: a logit between 16 and 32 becomes a multiple of 0.125, and
so does its log-probability. Here the sums are kept. Weights and hidden states stay in half precision, so the head reads
as many bytes as before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_ELEMENTS = 1 << 22
"""Weights that are held in fp32 at once where no kernel gives fp32 sums of half-precision products."""


class FP32Head(nn.Linear):
    """A linear layer whose outputs are fp32 even if its weights are not."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in_features) of the weights' dtype; returns (…, out_features)."""
        return fp32_linear(x, self.weight, self.bias)


def fp32_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b with the sums in fp32, not rounded to half precision; fp32 and fp64 are computed as they are.

    x: (…, in_features), weight: (out_features, in_features); returns (…, out_features). Not differentiable on a GPU.
    """
    if weight.dtype.itemsize >= 4:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    if flat.is_cuda:
        y = torch.mm(flat, weight.T, out_dtype=torch.float32)
    else:
        rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
        exact = flat.float()
        y = torch.cat([exact @ block.float().T for block in weight.split(rows)], dim=1)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], y.shape[-1])


def use_fp32_head(model: Any) -> None:
    """Let a transformers model, PEFT's layers in it or not, give fp32 logits. What it does to them after the head (a
    factor, a soft cap, an adapter of the head) then happens in fp32 too. Changes the model in place; heads that aren't
    nn.Linear, and those of fp32 and fp64 bases, stay as they are."""
    head = model.get_output_embeddings()
    while hasattr(head, "base_layer"):  # PEFT's layers around it
        head = head.base_layer
    if type(head) is nn.Linear and head.weight.dtype.itemsize < 4:
        # the class alone, so that ties, hooks and names stay
        head.__class__ = FP32Head
