"""Metrics of a policy against its reference: reward, divergence, entropy, length, repetition, wins.

One completion is sampled for each prompt. Divergence and entropy are exact at every sampled position, from the whole
distributions and not only from the sampled token (a Rao-Blackwell estimate, Amini et al., 2025, arXiv 2504.10637):

    KL(policy ‖ reference) of a completion = Σ_t Σ_v π(v | t) · (log π(v | t) − log π_ref(v | t)), nats
    objective = reward − kl_coefficient · KL
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytune_llm.data.examples import IGNORED, Rollout, TokenSequence
from raytune_llm.evaluation.generate import sample
from raytune_llm.evaluation.metrics import Array, Metric, mean, ratio
from raytune_llm.evaluation.terms import Better
from raytune_llm.models.batches import run_batches
from raytune_llm.models.forward import inference, label_logits, row_chunks

REPEATED = 4
"""Length of the word pieces whose repetition is counted, tokens."""


@dataclass(frozen=True)
class PolicyPrompt:
    """A prompt to be answered by the policy."""

    prompt_ids: list[int]
    prompt: str
    answer: str


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    pad_id: int
    batch_size: int
    seed: int


def roll_out(
    model: Any, prompts: Sequence[PolicyPrompt], sampling: Sampling, decode: Callable[[list[int]], str]
) -> list[Rollout]:
    """One sampled completion for each prompt, in their order."""
    rows = sample(
        model,
        [one.prompt_ids for one in prompts],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        stop_ids=sampling.stop_ids,
        pad_id=sampling.pad_id,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
    )
    return [
        Rollout(one.prompt_ids, row, one.prompt, decode(row), one.answer, row[-1] in sampling.stop_ids)
        for one, row in zip(prompts, rows, strict=True)
    ]


@torch.no_grad()
def divergence(
    model: Any,
    as_reference: Callable[[], AbstractContextManager[Any]],
    rollouts: Sequence[Rollout],
    sampling: Sampling,
) -> tuple[Array, Array]:
    """KL(policy ‖ reference) and entropy of each completion, nats, summed over its tokens, (n,) each.

    as_reference: gives the reference model as a context; inside it, `model` may be that one.
    """
    kl, entropy = np.zeros(len(rollouts)), np.zeros(len(rollouts))
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in rollouts]

    def measure(batch: list[int]) -> None:
        sequences = [_sequence(rollouts[i]) for i in batch]
        logits, labels = label_logits(model, sequences, pad_id=sampling.pad_id)
        with as_reference() as reference, inference(reference):
            reference_logits = label_logits(reference, sequences, pad_id=sampling.pad_id)[0]
        both = _kl_and_entropy(logits, reference_logits, sampling.temperature)
        rows = (labels != IGNORED).nonzero()[:, 0]
        kl[batch], entropy[batch] = (_by_row(each, rows, len(batch)) for each in both)

    with inference(model):
        run_batches(lengths, sampling.batch_size, measure)
    return kl, entropy


def _kl_and_entropy(logits: Tensor, reference_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(policy ‖ reference) and the policy's entropy at each position, nats, (K,) each, from logits (K, V)."""
    kl, entropy = (torch.zeros(len(logits), dtype=torch.float64, device=logits.device) for _ in range(2))
    for rows, part in row_chunks(logits):
        policy = (part / temperature).log_softmax(-1)
        reference = (reference_logits[rows].to(part) / temperature).log_softmax(-1)
        probabilities = policy.exp()
        kl[rows] = (probabilities * (policy - reference)).sum(-1).double()
        entropy[rows] = -(probabilities * policy).sum(-1).double()
    return kl, entropy


def policy_metrics(
    rollouts: Sequence[Rollout],
    rewards: Array,
    kl: Array,
    entropy: Array,
    wins: Mapping[str, Array],
    *,
    kl_coefficient: float,
    prefix: str = "eval",
) -> dict[str, Metric]:
    """A policy's metrics, resamplable over prompts. wins: by metric, 1, 0, or 0.5 for a tie with the reference."""
    tokens = np.array([len(r.completion_ids) for r in rollouts], dtype=np.float64)
    found = {
        "objective": mean(rewards - kl_coefficient * kl, Better.higher),
        "reward": mean(rewards, Better.higher),
        "kl": mean(kl, Better.lower),
        "kl_per_token": ratio(kl, tokens, Better.lower),
        **{name: mean(won, Better.higher) for name, won in wins.items()},
        "entropy": ratio(entropy, tokens, Better.neither),
        "completion_tokens": mean(tokens, Better.neither),
        "ended": mean([float(r.ended) for r in rollouts], Better.higher),
        "repetition": mean([repetition(r.completion_ids) for r in rollouts], Better.lower),
    }
    return {f"{prefix}/{name}": metric for name, metric in found.items()}


def policy_directions(wins: Iterable[str], prefix: str = "eval") -> dict[str, Better]:
    """The direction of each of policy_metrics, without a policy. wins: the names of the win rates."""
    blank = np.zeros(1)
    found = policy_metrics(
        [Rollout([], [0], "", "", "", ended=True)],
        blank,
        blank,
        blank,
        dict.fromkeys(wins, blank),
        kl_coefficient=0.0,
        prefix=prefix,
    )
    return {name: metric.better for name, metric in found.items()}


def repetition(ids: Sequence[int]) -> float:
    """The share of a completion's 4-grams of tokens that have occurred in it before, 0 to 1."""
    grams = [tuple(ids[i : i + REPEATED]) for i in range(len(ids) - REPEATED + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def win_rate(verdicts: Array, reference_verdicts: Array) -> Array:
    """1 where the policy's completion is judged better than the reference's, 0.5 where alike, else 0; (n,)."""
    return (np.sign(verdicts - reference_verdicts) + 1) / 2


def _sequence(rollout: Rollout) -> TokenSequence:
    ids = rollout.prompt_ids + rollout.completion_ids
    return TokenSequence(ids, [IGNORED] * len(rollout.prompt_ids) + rollout.completion_ids)


def _by_row(values: Tensor, rows: Tensor, count: int) -> Array:
    return torch.zeros(count, dtype=torch.float64).index_add_(0, rows.cpu(), values.double().cpu()).numpy()
