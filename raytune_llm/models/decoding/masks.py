"""What the rows of a decoding step may attend to, in the form that a model takes.

Row i, at position p, sees columns 0 to p of its own, in sliding-window layers only the last `window` of these.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from raytune_llm.compat import attention_implementation
from raytune_llm.models.attention import FULL_ATTENTION, MASKLESS

SLIDING_ATTENTION = "sliding_attention"


def attention_kinds(model: Any) -> set[str]:
    """The kinds of attention of a model's layers."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds)
    slides = getattr(config, "sliding_window", None) is not None and hasattr(
        sys.modules[type(model).__module__], "create_sliding_window_causal_mask"
    )
    return {SLIDING_ATTENTION if slides else FULL_ATTENTION}


def makes_own_mask(config: Any) -> bool:
    """Whether a model's layers hide positions themselves, by columns of the batch instead of each row's own positions:
    GPT-Neo's local attention, ALiBi."""
    return "local" in getattr(config, "attention_layers", ()) or bool(getattr(config, "alibi", False))


class Masks:
    """Makes the attention masks of one model's decoding steps."""

    def __init__(self, model: Any) -> None:
        self._kinds = sorted(attention_kinds(model))
        self._window: Any = getattr(model.config.get_text_config(), "sliding_window", None)
        self.is_additive = attention_implementation(model) in ("sdpa", "eager", MASKLESS)
        """Whether the model takes a bias; other implementations want 0 and 1, and read them on the host."""
        self._zero = torch.zeros((), dtype=model.dtype, device=model.device)
        # the lowest finite number: softmax of a row of only -inf is NaN
        self._hidden = torch.full_like(self._zero, torch.finfo(model.dtype).min)

    def __call__(self, positions: Tensor, columns: int, *, sees_all: bool) -> Any:
        """positions: (rows, 1); sees_all: whether all are that of the last column. A bias (rows, 1, 1, columns), where
        layers differ one by kind of attention; or (rows, columns) of 0 and 1."""
        if sees_all and self.is_additive and self._kinds == [FULL_ATTENTION]:
            return self._zero.expand(len(positions), 1, 1, columns)
        places = torch.arange(columns, device=positions.device)
        if not self.is_additive:
            return (places <= positions).long()
        found = {kind: self._bias(kind, places, positions) for kind in self._kinds}
        return found if len(found) > 1 else found[self._kinds[0]]

    def _bias(self, kind: str, places: Tensor, positions: Tensor) -> Tensor:
        is_hidden = places > positions
        if kind == SLIDING_ATTENTION:
            is_hidden |= places <= positions - self._window
        return torch.where(is_hidden, self._hidden, self._zero)[:, None, None]
