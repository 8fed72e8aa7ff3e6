"""Is one system better than another by more than chance? Percentile bootstrap over examples (Efron and Tibshirani,
1993, ch. 13).

Every draw takes as many examples as there are, with replacement, the same ones for each system; a metric is computed
anew on each draw (a token mean as Σ sum / Σ weight of the draw), and so is the difference of two systems. The middle
95 % of the draws is the interval. It covers the examples only: another seed of training is another system.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from raytune_llm.errors import InputError
from raytune_llm.evaluation.metrics import Array, Metric
from raytune_llm.evaluation.terms import Better

LEVEL = 0.95
FEWEST_DIFFERING = 6
"""Examples on which two systems must differ before a difference can be called significant: with k of them no exact
paired test gets below 2·2^-k, which is under 5 % from 6 on; the bootstrap would accept 4."""
CHUNK = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A metric of one system with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of `system` minus that of `reference`, with its paired 95 % interval."""

    metric: str
    better: Better
    system: str
    reference: str
    value: float
    low: float
    high: float
    num_differing: int
    """Examples on which the two are not alike."""

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0, on enough differing examples to say so. Never when it isn't a number."""
        return (self.low > 0 or self.high < 0) and self.num_differing >= FEWEST_DIFFERING


@dataclass(frozen=True)
class Comparison:
    """Systems on the same examples."""

    systems: tuple[str, ...]
    """In the order given: what is compared against comes first, the newest last."""
    metrics: dict[str, dict[str, Estimate]]
    """By metric, then by system."""
    directions: dict[str, Better]
    """By metric."""
    differences: tuple[Difference, ...]
    """Of each system and every one before it, for each metric."""
    num_examples: int
    num_draws: int

    def difference(self, metric: str, system: str | None = None, reference: str | None = None) -> Difference:
        """By default the last system minus the first. Raises ValueError when there is no such comparison."""
        system, reference = system or self.systems[-1], reference or self.systems[0]
        for found in self.differences:
            if (found.metric, found.system, found.reference) == (metric, system, reference):
                return found
        raise ValueError(
            f"no comparison of {system!r} with {reference!r} on metric={metric!r}; "
            f"metrics are {list(self.metrics)}, systems in order {list(self.systems)}"
        )


class VerdictKind(Enum):
    """How a system did against another on one metric."""

    better = "better"
    worse = "worse"
    alike = "no significant difference"
    undefined = "not a number"


@dataclass(frozen=True)
class Verdict:
    """An outcome and a sentence that states it."""

    outcome: VerdictKind
    text: str


def compare(systems: Mapping[str, Mapping[str, Metric]], *, num_draws: int, seed: int) -> Comparison:
    """Intervals of every metric of every system, and of their differences.

    Args:
        systems: by name, what is compared against first; all with the same metrics on the same examples.
        num_draws: resamples; ≥ 1.

    Raises:
        ValueError: metrics, their directions or numbers of examples differ between systems, there is nothing to
            compare, or num_draws < 1.
    """
    directions, num_examples = _check(systems, num_draws)
    names = list(directions)
    drawn: dict[str, dict[str, list[Array]]] = {name: {system: [] for system in systems} for name in names}
    for counts in resamples(num_examples, num_draws, seed):
        for system, metrics in systems.items():
            for name in names:
                drawn[name][system].append(metrics[name].repeated(counts))
    metrics_found: dict[str, dict[str, Estimate]] = {}
    differences: list[Difference] = []
    for name in names:
        draws = {system: np.concatenate(parts) for system, parts in drawn[name].items()}
        whole = {system: metrics[name].whole() for system, metrics in systems.items()}
        metrics_found[name] = {system: Estimate(whole[system], *_interval(draws[system])) for system in systems}
        for later, system in enumerate(systems):
            for reference in list(systems)[:later]:
                low, high = _interval(_minus(draws[system], draws[reference]))
                rows = systems[system][name].statistics != systems[reference][name].statistics
                value = float(_minus(np.array(whole[system]), np.array(whole[reference])))
                count = int(rows.any(-1).sum())
                differences.append(Difference(name, directions[name], system, reference, value, low, high, count))
    return Comparison(tuple(systems), metrics_found, directions, tuple(differences), num_examples, num_draws)


def better(comparison: Comparison, metric: str, system: str | None = None, reference: str | None = None) -> Verdict:
    """Whether a system (the last) beats another (the first) on a metric, in the metric's own direction.

    Raises:
        ValueError: there is no such comparison, or neither more nor less of the metric is better.
    """
    found = comparison.difference(metric, system, reference)
    outcome = verdict_kind(found)
    if outcome is None:
        raise ValueError(f"metric={metric!r} has no better direction; choose one of {_directed(comparison)}")
    system, reference = found.system, found.reference
    if outcome is VerdictKind.undefined:
        values = ", ".join(f"{name} {number(comparison.metrics[metric][name].value)}" for name in (reference, system))
        return Verdict(outcome, f"{system} and {reference} cannot be compared on {metric}: {values}")
    if outcome is VerdictKind.alike:
        by = f"{number(found.value, sign=True)} [{number(found.low, sign=True)}, {number(found.high, sign=True)}]"
        text = f"no significant difference between {system} and {reference} on {metric}: {by}"
        few = found.num_differing < FEWEST_DIFFERING and (found.low > 0 or found.high < 0)
        return Verdict(outcome, text + (f", too few examples that differ ({found.num_differing})" if few else ""))
    verb = "beats" if outcome is VerdictKind.better else "is worse than"
    low, high = sorted((abs(found.low), abs(found.high)))
    by = f"{number(abs(found.value))} [{number(low)}, {number(high)}]"
    return Verdict(outcome, f"{system} {verb} {reference} on {metric} by {by}")


def verdict_kind(difference: Difference) -> VerdictKind | None:
    """What a difference means for its system; None for a metric without a direction."""
    if difference.better is Better.neither:
        return None
    if any(math.isnan(value) for value in (difference.value, difference.low, difference.high)):
        return VerdictKind.undefined
    if not difference.significant:
        return VerdictKind.alike
    rises = difference.low > 0
    return VerdictKind.better if rises == (difference.better is Better.higher) else VerdictKind.worse


def number(value: float, *, sign: bool = False) -> str:
    """Three decimals for small numbers, fewer for large ones."""
    size = abs(value)
    style = ".3f" if size < 100 else ".1f" if size < 1e5 else ".3g"
    return format(value, ("+" if sign else "") + style)


def resamples(num_examples: int, num_draws: int, seed: int) -> Iterator[Array]:
    """How often each example is drawn, (some draws, n) at a time so that memory is bounded."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // num_examples)
    for start in range(0, num_draws, step):
        rows = min(step, num_draws - start)
        drawn = generator.integers(num_examples, size=(rows, num_examples))
        flat = (drawn + np.arange(rows)[:, None] * num_examples).ravel()
        yield np.bincount(flat, minlength=rows * num_examples).reshape(rows, num_examples).astype(np.float64)


def _interval(draws: Array) -> tuple[float, float]:
    """The middle 95 %; NaN when any draw is."""
    if np.isnan(draws).any():
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _minus(left: Array, right: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return left - right


def _check(systems: Mapping[str, Mapping[str, Metric]], num_draws: int) -> tuple[dict[str, Better], int]:
    """The metrics' directions, by name, and the number of examples."""
    if num_draws < 1:
        raise InputError(f"evaluation.bootstrap_draws={num_draws} is not allowed; allowed: ≥ 1")
    first = next(iter(systems.values()), {})
    if not first:
        raise ValueError(f"nothing to compare: systems {list(systems)} have no metrics")
    for system, metrics in systems.items():
        if metrics.keys() != first.keys():
            raise ValueError(
                f"{system!r} has metrics {sorted(metrics)}, but {next(iter(systems))!r} has {sorted(first)}"
            )
    directions = {name: metric.better for name, metric in first.items()}
    for system, metrics in systems.items():
        if {name: metric.better for name, metric in metrics.items()} != directions:
            raise ValueError(f"{system!r} has metrics of other directions than {next(iter(systems))!r}")
    sizes = {
        f"{system}: {name}": metric.num_examples
        for system, metrics in systems.items()
        for name, metric in metrics.items()
    }
    if len(set(sizes.values())) != 1:
        raise ValueError(f"systems must be compared on the same examples; numbers of examples are {sizes}")
    return directions, next(iter(sizes.values()))


def _directed(comparison: Comparison) -> list[str]:
    return [name for name, direction in comparison.directions.items() if direction is not Better.neither]
