"""Which of a few configurations is first, and is that luck? Each was trained with several seeds, all runs measured on
the same records.

A draw takes as many records as there are, with replacement, the same ones for all runs (the paired bootstrap of
compare.py), and moves each configuration's mean over its runs by what another choice of seeds would: normal with the
variance between runs, which is pooled over the configurations and itself drawn from its posterior (scaled inverse χ²),
so that a mean of n runs follows Student's t (Gelman et al., Bayesian Data Analysis, 2013, 3.2). Runs also differ by
chance of seed and record together, which the draws of records show already and which is taken off. A bootstrap of two
or three seeds would understate the variance. The share of the draws in which a configuration has the best mean is the
probability that it is first.

Runs must have other seeds than those by which the configurations were chosen: the chosen ones were lucky.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raytune_llm.evaluation.compare import LEVEL, resamples
from raytune_llm.evaluation.metrics import Array, Metric
from raytune_llm.evaluation.terms import Better

TAIL = (1 - LEVEL) / 2
"""Beyond which a difference isn't luck, on either side: which configuration would be first was not known beforehand."""


@dataclass(frozen=True)
class Standing:
    """A configuration's place among others."""

    name: str
    mean: float
    """Of the metric, over its runs."""
    runs: tuple[float, ...]
    """The metric of each run, on all records."""
    first: float
    """Probability that it is the best of all, 0 to 1."""
    as_good: float
    """Probability that it is at least as good as the first, 0 to 1."""


@dataclass(frozen=True)
class Ranking:
    """Configurations, the best first."""

    standings: tuple[Standing, ...]
    num_records: int

    @property
    def is_clear(self) -> bool:
        """Whether the first one is better than all others by more than chance, at 95 %, both sides."""
        return self.standings[0].first >= 1 - TAIL

    @property
    def equals(self) -> list[str]:
        """The first one and those that may be as good: none of them worse by more than chance."""
        if self.is_clear:
            return [self.standings[0].name]
        return [one.name for place, one in enumerate(self.standings) if not place or one.as_good > TAIL]


def rank(configurations: Mapping[str, Sequence[Metric]], *, num_draws: int, seed: int) -> Ranking:
    """Rank configurations by the mean of their runs. One with a run whose metric isn't finite comes last.

    Args:
        configurations: the runs of each by its name, two or more configurations with two or more runs each, all
            measured on the same records in the same order.

    Raises:
        ValueError: there are fewer, or the records differ in number.
    """
    sizes = {metric.num_examples for runs in configurations.values() for metric in runs}
    if len(configurations) < 2 or min(map(len, configurations.values())) < 2 or len(sizes) != 1:
        raise ValueError(
            f"can't rank { ({name: len(runs) for name, runs in configurations.items()}) } on {sizes} records"
        )
    num_records = sizes.pop()
    names, sign = list(configurations), sign_of(configurations)
    values = {name: [metric.whole() for metric in runs] for name, runs in configurations.items()}
    sound = [name for name in names if np.isfinite(values[name]).all()]
    draws = drawn_means({name: configurations[name] for name in sound}, values, num_draws=num_draws, seed=seed)
    means = {name: float(np.mean(values[name])) if name in sound else math.nan for name in names}
    order = sorted(sound, key=lambda name: sign * means[name]) + [name for name in names if name not in sound]
    wins = sign * draws == (sign * draws).min(0) if sound else draws
    found = []
    for name in order:
        if name not in sound:
            found.append(Standing(name, math.nan, tuple(values[name]), 0.0, 0.0))
            continue
        own, best = draws[sound.index(name)], draws[sound.index(order[0])]
        first = float((wins[sound.index(name)] / wins.sum(0)).mean())
        as_good = float((sign * own <= sign * best).mean())
        found.append(Standing(name, means[name], tuple(values[name]), first, as_good))
    return Ranking(tuple(found), num_records)


def sign_of(configurations: Mapping[str, Sequence[Metric]]) -> int:
    """1 where less of the metric is better, -1 where more is."""
    return 1 if next(iter(configurations.values()))[0].better is Better.lower else -1


def drawn_means(
    configurations: Mapping[str, Sequence[Metric]],
    values: Mapping[str, Sequence[float]],
    *,
    num_draws: int,
    seed: int,
) -> Array:
    """Each configuration's mean in each draw, (configurations, draws)."""
    if not configurations:
        return np.zeros((0, num_draws))
    metrics = [metric for runs in configurations.values() for metric in runs]
    counts = resamples(metrics[0].num_examples, num_draws, seed)
    of_runs = np.concatenate([np.stack([metric.repeated(some) for metric in metrics]) for some in counts], axis=1)
    sizes = np.array([len(runs) for runs in configurations.values()])
    parts = np.split(of_runs, np.cumsum(sizes)[:-1])
    means = np.stack([part.mean(0) for part in parts])
    freedom = int(sizes.sum() - len(sizes))
    squares = sum(float(np.var(values[name])) * len(runs) for name, runs in configurations.items())
    of_records = sum(float(np.var(part - part.mean(0), axis=1).sum()) for part in parts) / freedom
    generator = np.random.default_rng([seed, 1])
    between = np.maximum(squares / generator.chisquare(freedom, num_draws) - of_records, 0.0)
    return means + np.sqrt(between / sizes[:, None]) * generator.standard_normal(means.shape)
