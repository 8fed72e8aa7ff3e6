"""Encoded records: token sequences with their labels, and what frozen models add to them before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch.nn.functional.cross_entropy)."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherTopK:
    """A teacher's predictions for the L label tokens of a sequence that count, in their order."""

    ids: NDArray[np.int32]
    """Its k likeliest tokens, (L, k)."""
    logprobs: NDArray[np.float32]
    """Their log p, and that of all other tokens together (−inf where there are none), nats, (L, k + 1)."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One token sequence. Causal bases: labels are aligned with input_ids (IGNORED where no loss is due) and are
    shifted by the model. Encoder-decoder bases: input_ids feed the encoder and labels are the decoder's targets, of
    their own length."""

    input_ids: list[int]
    labels: list[int]
    reference: float | None = None
    """log p(labels) under the reference policy, nats; set before training where the method needs it."""
    teacher: TeacherTopK | None = None
    """A teacher's likeliest tokens for each label; set before training where the method needs it."""
    features: NDArray[np.float32] | None = None
    """A teacher's hidden states where it predicts the label tokens that count, (L, layers, its width); set before
    training where the method needs it."""
    num_bytes: int | None = field(default=None, compare=False)
    """Of the text of its labels, in UTF-8, which follows from them; known of what is evaluated."""


Example = dict[str, TokenSequence]


@dataclass(frozen=True)
class Examples:
    """What trials are trained and evaluated on: encoded records, with all that the method needs of frozen models."""

    train: Sequence[Example]
    eval: Sequence[Example]
    sources: NDArray[np.int64] | None = None
    """Which of data.train's locations each example of train is of, (n,); None where there is one."""
    guard: Sequence[Example] = ()
    """The base's own answers to general prompts, on which each evaluation measures drift; empty where none does."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and the policy's completion of it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """With its stop token, if it has one."""
    prompt: str
    """As the policy read it."""
    completion: str
    """Without special tokens."""
    answer: str
    """The record's own, '' where it has none."""
    ended: bool
    """Whether it ended in a stop token; else it was cut off at the longest length."""
