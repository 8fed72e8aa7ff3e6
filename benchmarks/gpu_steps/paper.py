"""What a GPU could do at best, by arithmetic: the floor under a packed training step and under a decoding step.

A packed step of S trials with B examples of T tokens, all labels:

    FLOP a token = 4 · W             frozen linear layers: forward, and back to their inputs
                 + 6 · r · (in+out)  LoRA of rank r, summed over layers: forward, back, and two weight gradients
                 + 4 · h · V         output head: logits, and the product of probabilities and head
                 + 6 · T · h · L     causal attention, forward and back
    seconds      = tokens · FLOP / matmul rate + S · P · 34 bytes / bandwidth

where P are a trial's scalars and 34 bytes AdamW's traffic for one: gradient cleared, added to and read, weight and two
moments read and written, a bf16 copy written. Recomputed activations don't count as work. A decoding step reads the
linear layers and the head once, each adapter once, and each row's keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

MATMUL_RATE = 800e12
"""FLOP/s of large bf16 products, as H100s and H200s have been seen to do."""
BANDWIDTH = 3.0e12
"""Bytes/s, read and written, of an H100; an H200's is about 1.4 times as much."""
OPTIMIZER_BYTES = 34
BF16_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def key_value_width(self) -> int:
        return self.hidden // self.heads * self.key_value_heads

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of a block."""
        hidden, narrow, wide = self.hidden, self.key_value_width, self.intermediate
        return [
            *((hidden, hidden), (hidden, narrow), (hidden, narrow), (hidden, hidden)),
            *((hidden, wide), (hidden, wide), (wide, hidden)),
        ]

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(inner * outer for inner, outer in self.sides)

    def adapter_scalars(self, lora_rank: int) -> int:
        return self.layers * lora_rank * sum(inner + outer for inner, outer in self.sides)


SHAPES = {
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, True),
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, False),
    "tiny": Shape(64, 2, 4, 2, 128, 1152, True),
}


def flop_per_token(shape: Shape, length: int, lora_rank: int) -> float:
    """Arithmetic of training on one token."""
    head = 4.0 * shape.hidden * shape.vocabulary
    attention = 6.0 * length * shape.hidden * shape.layers
    return 4.0 * shape.linear_weights + 6.0 * shape.adapter_scalars(lora_rank) + head + attention


def step_seconds(
    shape: Shape,
    batch_size: int,
    length: int,
    *,
    slots: int,
    lora_rank: int,
    matmul_rate: float = MATMUL_RATE,
    bandwidth: float = BANDWIDTH,
) -> float:
    """Floor under one optimizer step of all slots together."""
    tokens = slots * batch_size * length
    optimizer = slots * shape.adapter_scalars(lora_rank) * OPTIMIZER_BYTES / bandwidth
    return tokens * flop_per_token(shape, length, lora_rank) / matmul_rate + optimizer


def decode_tokens_per_second(
    shape: Shape, *, rows: int, adapters: int, lora_rank: int, context: int, bandwidth: float = BANDWIDTH
) -> float:
    """Ceiling of decoding so many answers at once, each with `context` tokens before it."""
    weights = shape.linear_weights + shape.hidden * shape.vocabulary
    cache = rows * context * 2 * shape.key_value_width * shape.layers
    scalars = weights + adapters * shape.adapter_scalars(lora_rank) + cache
    return rows / (scalars * BF16_BYTES / bandwidth)
