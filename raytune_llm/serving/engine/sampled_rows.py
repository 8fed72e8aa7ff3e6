"""Drawing tokens for the rows of a batch that aren't greedy, from their logits.

In transformers' order, the logits are divided by the temperature; top_k keeps the likeliest tokens, with all that are
as likely as the last of them; top_p keeps of those the likeliest that together reach it (nucleus sampling, Holtzman et
al., 2020, arXiv 1904.09751); min_p drops those that are less than so many times as likely as the likeliest (Nguyen et
al., 2024, arXiv 2407.01082). A sample is the inverse of the cumulative distribution at one uniform number; equally
likely tokens are in the order of their ids.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

NUM_LIKELIEST = 256
"""Tokens that are sorted first; mostly they contain the nucleus, and sorting a whole vocabulary takes 20 times as
long."""
ROUNDING = 1e-9
"""Of a sum of probabilities."""


class Draw(Protocol):
    """How one row is sampled; as Sampling's fields."""

    temperature: float
    top_p: float
    top_k: int | None
    min_p: float

    def uniform(self) -> float:
        """The next number, 0 ≤ u < 1."""
        ...


class SampledRows:
    """Rows of a batch that are all sampled with top_p, or all without."""

    def __init__(self, rows: Sequence[int], draws: Sequence[Draw], device: torch.device) -> None:
        self._draws, self._device = draws, device
        self.index = torch.tensor(rows, dtype=torch.long, device=device)
        """Their places in the batch, (R,)."""
        self._temperature = self._column([draw.temperature for draw in draws])
        self._top_p = self._column([draw.top_p for draw in draws])
        top_ks = {i: draw.top_k for i, draw in enumerate(draws) if draw.top_k is not None}
        self._largest_k = max(top_ks.values(), default=0)
        self._with_top_k = torch.tensor(list(top_ks), dtype=torch.long, device=device)
        self._top_k = torch.tensor(list(top_ks.values()), dtype=torch.long, device=device)[:, None]
        self._with_min_p = torch.tensor([i for i, draw in enumerate(draws) if draw.min_p], device=device)
        self._min_p = self._column([draw.min_p for draw in draws])

    def __len__(self) -> int:
        return len(self._draws)

    def sample(self, scores: Tensor) -> Tensor:
        """Tokens, (R,), of the batch's scores (B, V), by all but top_p."""
        weights = self._probabilities(scores)
        if len(self._with_min_p):
            some = weights[self._with_min_p]
            smallest = self._min_p[self._with_min_p] * some.amax(-1, keepdim=True)
            weights[self._with_min_p] = some.masked_fill_(some < smallest, 0)
        return _pick(weights.cumsum(-1), self._uniform())[:, 0]

    def sample_nucleus(self, scores: Tensor) -> Tensor:
        """Tokens, (R,), of the batch's scores (B, V), by all settings."""
        probabilities, uniform = self._probabilities(scores), self._uniform()
        values, ids = probabilities.topk(min(NUM_LIKELIEST, probabilities.shape[-1]))
        # topk leaves open which of several tokens as likely as its last one it takes; the nucleus must end before those
        certain = values.masked_fill(values <= values[:, -1:], 0).sum(-1, keepdim=True)
        is_within = certain > self._top_p + ROUNDING
        ids, place = ids.sort(-1)
        tokens = self._nucleus(values.gather(-1, place), ids, uniform, slice(None))
        others = (~is_within[:, 0]).nonzero()[:, 0]
        if len(others):
            some = probabilities[others]
            every = torch.arange(some.shape[-1], device=self._device).expand_as(some)
            tokens[others] = self._nucleus(some, every, uniform[others], others)
        return tokens

    def _nucleus(self, weights: Tensor, ids: Tensor, uniform: Tensor, rows: Tensor | slice) -> Tensor:
        """Tokens of some rows, from the probabilities of the tokens `ids`, which ascend."""
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        cumulative = ordered.cumsum(-1)
        kept = (cumulative - ordered < self._top_p[rows]).sum(-1, keepdim=True)
        if len(self._with_min_p):
            kept = kept.minimum((ordered >= self._min_p[rows] * ordered[:, :1]).sum(-1, keepdim=True))
        last = kept.clamp(min=1) - 1  # rows of NaN keep none
        place = _pick(cumulative.minimum(cumulative.gather(-1, last)), uniform).minimum(last)
        return ids.gather(-1, order.gather(-1, place))[:, 0]

    def _probabilities(self, scores: Tensor) -> Tensor:
        """(R, V), after temperature and top_k, in fp64."""
        logits = scores[self.index].double()
        logits -= logits.amax(-1, keepdim=True)  # so that no temperature, however small, makes the largest infinite
        logits /= self._temperature
        if self._largest_k:
            some = logits[self._with_top_k]
            count = min(self._largest_k, some.shape[-1])
            last = some.topk(count).values.gather(-1, self._top_k.clamp(max=count) - 1)
            logits[self._with_top_k] = some.masked_fill_(some < last, float("-inf"))
        return logits.softmax(-1)

    def _uniform(self) -> Tensor:
        """(R, 1)"""
        return self._column([draw.uniform() for draw in self._draws])

    def _column(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self._device)[:, None]


def _pick(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Places, (R, 1), where the cumulative weights first exceed u times their total."""
    place = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return place.clamp(max=cumulative.shape[-1] - 1)
