"""What verdicts add up to: win rates as resamplable metrics, bias by order, agreement with labels and people.

Bias by order: where the two orders disagree, a judge without bias favours the answer shown first half of the time; an
exact two-sided binomial test says how likely so uneven a split is by chance. Intervals of shares are Wilson's (1927).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raytune_llm.evaluation.judging.pairs import Choice, Judged
from raytune_llm.evaluation.metrics import Metric, ratio
from raytune_llm.evaluation.terms import Better

CHANCE = 0.05
"""From this p-value on, a judge counts as biased by order."""
Z = 1.959964


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval; NaN of nothing."""
        if not self.of:
            return math.nan, math.nan
        share, n = self.value, self.of
        middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        return middle - half, middle + half


@dataclass(frozen=True)
class OrderBias:
    """How a judge's verdicts depend on the order of the answers."""

    disagreements: Share
    """Pairs with another verdict in the other order, of those asked in both."""
    first: Share
    """Of the disagreements, those that favour the answer shown first."""
    p_value: float
    """Of a judge without bias: the probability of a split at least as uneven."""

    @property
    def is_biased(self) -> bool:
        return self.p_value < CHANCE


@dataclass(frozen=True)
class Agreement:
    """A judge against what is known to be better."""

    agrees: Share
    """Pairs whose known better answer wins."""
    num_ties: int
    kappa: float | None = None
    """Cohen's kappa of win, tie and loss, between -1 and 1; None where it isn't asked for, or is not a number."""

    @property
    def num_against(self) -> int:
        """Pairs whose known better answer loses."""
        return self.agrees.of - self.agrees.count - self.num_ties


def between(judged: Sequence[Judged], system: str, other: str) -> list[Judged]:
    """The pairs of two systems."""
    return [one for one in judged if (one.pair.system, one.pair.other) == (system, other)]


def outcome_metric(judged: Sequence[Judged], num_examples: int, weights: np.ndarray | None = None) -> Metric:
    """The mean score over the pairs with a verdict, of num_examples prompts; `weights` (n,) leaves others out, too."""
    scores, weight = np.zeros(num_examples), np.zeros(num_examples)
    for one in judged:
        if one.score is not None:
            scores[one.pair.place], weight[one.pair.place] = one.score, 1.0
    weight = weight if weights is None else weight * weights
    return ratio(scores * weight, weight, Better.higher)


def win_rates(judged: Sequence[Judged], systems: Sequence[str], num_examples: int) -> dict[str, Metric] | None:
    """Each system's win rate against the first one, whose own is 0.5: on the prompts for which every other one has a
    verdict against it. None where there is no such prompt."""
    first, *others = systems
    found = {name: outcome_metric(between(judged, name, first), num_examples) for name in others}
    weights = np.prod([metric.statistics[:, 1] for metric in found.values()], axis=0)
    if not weights.any():
        return None
    rates = {name: outcome_metric(between(judged, name, first), num_examples, weights) for name in others}
    return {first: ratio(0.5 * weights, weights, Better.higher), **rates}


def order_bias(judged: Sequence[Judged]) -> OrderBias:
    """Over all pairs that were asked in both orders."""
    asked = [one for one in judged if one.asked and one.score is not None]
    favoured = Counter(one.favoured for one in asked if one.disagrees)
    first = Share(favoured[Choice.first], favoured.total())
    return OrderBias(Share(favoured.total(), len(asked)), first, binomial_p(first.count, first.of))


def binomial_p(count: int, of: int) -> float:
    """The probability that a fair coin splits `of` throws at least as unevenly, on either side; 1 of none."""
    tail = sum(math.comb(of, k) for k in range(min(count, of - count) + 1))
    return min(1.0, 2 * tail / 2**of)


def agreement_with_labels(judged: Sequence[Judged], *, are_labels: bool) -> Agreement:
    """Where one answer is the reference and the other isn't: whether it wins. With `are_labels`, also the kappa over
    all pairs that were asked."""
    asked = [one for one in judged if one.asked and one.score is not None and one.pair.reference]
    truths = [_truth(one) for one in asked]
    decided = [(one, truth) for one, truth in zip(asked, truths, strict=True) if truth != 0.5]
    agrees = sum(one.score == truth for one, truth in decided)
    num_ties = sum(one.score == 0.5 for one, _ in decided)
    found = kappa([one.score for one in asked], truths) if are_labels and asked else None
    return Agreement(Share(agrees, len(decided)), num_ties, found)


def agreement_with_people(judged: Sequence[Judged]) -> Agreement:
    """Of pairs whose system's answer was chosen by people."""
    scores = [one.score for one in judged if one.score is not None]
    return Agreement(Share(scores.count(1.0), len(scores)), scores.count(0.5))


def kappa(ours: Sequence[object], theirs: Sequence[object]) -> float | None:
    """Cohen's kappa (1960): agreement beyond chance; None where chance alone would agree always."""
    count = len(ours)
    observed = sum(mine == other for mine, other in zip(ours, theirs, strict=True)) / count
    mine, other = Counter(ours), Counter(theirs)
    by_chance = sum(mine[value] * other[value] for value in mine) / count**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def counts(judged: Sequence[Judged]) -> Mapping[float | None, int]:
    """How many pairs have each score."""
    return Counter(one.score for one in judged)


def _truth(one: Judged) -> float:
    """By the reference: 1 where the system's answer alone is right, 0 where the other's alone is, else 0.5."""
    pair, reference = one.pair, one.pair.reference.strip()
    right, other_right = pair.answer.strip() == reference, pair.other_answer.strip() == reference
    return 0.5 + 0.5 * (right - other_right)
