"""What a request changes of its logits before a token is sampled: bias, penalties, a grammar.

In the order of transformers and vLLM: logit_bias is added; the repetition penalty (Keskar et al., 2019, arXiv
1909.05858) divides or multiplies; OpenAI's presence and frequency penalties are subtracted; then the tokens that the
grammar doesn't allow are ruled out. Bias and penalties touch only the tokens concerned, and rows without any of it are
left alone.

Shape letters: B answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from raytune_llm.serving.engine.base import Sampling
from raytune_llm.serving.engine.grammar import Grammar

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_BIAS = 1e30
"""Nats; keeps sums in fp32 finite."""


class TokenCounts:
    """The tokens whose logits an answer's penalties change, and how often the answer has each."""

    def __init__(self, prompt: Sequence[int]) -> None:
        """prompt: tokens that count as seen, though not as in the answer."""
        self._ids: np.ndarray = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        self._places = {int(token): place for place, token in enumerate(self._ids)}

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            spare = np.zeros(max(64, place), dtype=np.int64)
            self._ids, self._counts = np.concatenate([self._ids, spare]), np.concatenate([self._counts, spare])
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> np.ndarray:
        """Each token once."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """How often the answer has each of `ids`."""
        return self._counts[: len(self._places)]


class AnswerSoFar:
    """What the changes of one answer's logits depend on."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], grammar: Grammar | None) -> None:
        self.bias = sampling.logit_bias
        self.penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self.counts: TokenCounts | None = None
        if self.penalties != (1.0, 0.0, 0.0):
            self.counts = TokenCounts(prompt if sampling.repetition_penalty != 1 else ())
        self.grammar = grammar

    @property
    def is_tracked(self) -> bool:
        """Whether its changes depend on its tokens."""
        return self.counts is not None or self.grammar is not None

    def add(self, token: int) -> None:
        if self.counts is not None:
            self.counts.add(token)
        if self.grammar is not None:
            self.grammar.add(token)


class LogitChanges:
    """The changes for a fixed set of answers, in order."""

    def __init__(self, answers: Sequence[AnswerSoFar], device: torch.device) -> None:
        self._device = device
        self._penalised = [(row, a.counts, a.penalties) for row, a in enumerate(answers) if a.counts is not None]
        self._grammars = [(row, answer.grammar) for row, answer in enumerate(answers) if answer.grammar is not None]
        bias = [(row, token, value) for row, answer in enumerate(answers) for token, value in answer.bias]
        self._bias_rows, self._bias_ids, self._bias = (
            torch.tensor([entry[i] for entry in bias], dtype=dtype, device=device)
            for i, dtype in enumerate((torch.long, torch.long, torch.float64))
        )
        self.is_empty = not (bias or self._penalised or self._grammars)

    def __call__(self, scores: Tensor) -> Tensor:
        """A changed copy of scores (B, V); NaN in rows whose grammar failed."""
        scores = scores.clone()
        if len(self._bias):
            values = self._bias.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(scores.dtype)
            scores.index_put_((self._bias_rows, self._bias_ids), values, accumulate=True)
        if self._penalised:
            self._penalise(scores)
        for row, grammar in self._grammars:
            allowed = grammar.allowed(scores.shape[-1])
            if allowed is None:
                scores[row] = float("nan")
            else:
                scores[row].masked_fill_(torch.from_numpy(~allowed).to(self._device), float("-inf"))
        return scores

    def _penalise(self, scores: Tensor) -> None:
        """All penalised rows at once, in fp64. One entry for each token of each row."""
        lengths = [len(counts.ids) for _, counts, _ in self._penalised]
        penalties = np.array([(row, *values) for row, _, values in self._penalised])
        ids, times = (
            np.concatenate([getattr(counts, name) for _, counts, _ in self._penalised]) for name in ("ids", "counts")
        )
        entries = np.vstack([np.repeat(penalties, lengths, axis=0).T, ids, times])
        row, repetition, presence, frequency, token, count = torch.from_numpy(entries).to(self._device)
        where = (row.long(), token.long())
        values = scores[where].double()
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= (count > 0) * presence + count * frequency
        scores[where] = values.clamp(max=torch.finfo(scores.dtype).max).to(scores.dtype)
