"""Would more labels help? The winner's recipe trained on parts of the records, extrapolated to twice as many.

    cost(n) = a + b · n^(−c),     b ≥ 0

the power law that learning curves follow (Hestness et al., 2017, arXiv 1712.00409), by least squares for each c of a
grid. Four points don't show a law, so each draw behind the interval resamples the eval records, the same ones for all
parts, and adds noise as large as the points' distance from the law, which few points show only roughly: Student's t
with as many degrees of freedom as there are points beyond the law's three numbers. Leaves out what points can't show:
another kind of records, and where the law ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytune_llm.evaluation.compare import LEVEL, Estimate
from raytune_llm.evaluation.terms import Better
from raytune_llm.sweep.tables import text_table
from raytune_llm.training.curves import sparkline

Array = NDArray[np.float64]

SHARES = (0.125, 0.25, 0.5)
"""Parts of the winner's records that are trained on in addition to all of them."""
EXPONENTS: Array = np.geomspace(0.05, 2.0, 200)
"""Of a law; learning curves of neural networks have 0.07 to 0.5."""
FEWEST_RECORDS = 64
"""Of which an eighth says anything."""
COVERS = (
    "the interval covers which eval records were drawn and how far these trainings are from a power law; "
    "not records of another kind"
)


@dataclass(frozen=True)
class Law:
    """Of several curves at once, (draws,) each."""

    floor: Array
    scale: Array
    exponent: Array

    def at(self, num_records: float) -> Array:
        """The cost with so many records, (draws,)."""
        return self.floor + self.scale * num_records**-self.exponent


@dataclass(frozen=True, kw_only=True)
class LabelCurve:
    """What a metric does as records grow."""

    metric: str
    num_records: tuple[int, ...]
    """Ascending; the last is all that the winner was trained on."""
    values: tuple[float, ...]
    predicted_records: int
    predicted: Estimate
    """The metric with twice the records."""
    gain: Estimate
    """How much better that is than the law with all of them; ≥ 0."""

    @property
    def helps(self) -> bool:
        """Whether more records help by more than chance."""
        return self.gain.low > 0

    def sentence(self) -> str:
        """The answer in words."""
        found = self.predicted
        about = f"{self.metric} about {found.value:.4f} [{found.low:.4f}, {found.high:.4f}], now {self.values[-1]:.4f}"
        if self.helps:
            return f"more labels would help: {self.predicted_records} records would give {about}"
        return f"these trainings can't tell if more labels would help: {self.predicted_records} records, {about}"

    def text(self) -> str:
        """The curve as a table, the answer and what its interval covers."""
        bars = sparkline([*self.values, self.predicted.value])
        known = zip(self.num_records, self.values, bars, strict=False)
        rows = [[f"{count}", f"{value:.4f}", bar, "trained"] for count, value, bar in known]
        last = [f"{self.predicted_records}", f"{self.predicted.value:.4f}", bars[-1], "extrapolated"]
        return "\n".join([text_table(["records", self.metric, "", ""], [*rows, last]), "", self.sentence(), COVERS])


def label_curve(
    metric: str, better: Better, num_records: Sequence[int], values: Sequence[float], resampled: Array, seed: int
) -> LabelCurve:
    """The curve of a metric through its values with so many records, ascending, four or more.

    resampled: the values on resamples of the eval records, the same resample in each row, (draws, points).
    """
    sign, records = -1.0 if better is Better.higher else 1.0, np.asarray(num_records, dtype=np.float64)
    costs, twice = sign * np.asarray(values, dtype=np.float64), 2 * int(num_records[-1])
    law = fitted(records, costs[None])
    residuals = costs - np.array([law.at(count)[0] for count in records])
    drawn = fitted(records, sign * resampled + _noise(residuals, resampled.shape, seed))
    least = 0.0 if better is Better.lower else -np.inf  # no loss is below 0
    predicted, now = max(least, law.at(twice)[0]), law.at(records[-1])[0]
    drawn_twice = np.maximum(least, drawn.at(twice))
    return LabelCurve(
        metric=metric,
        num_records=tuple(num_records),
        values=tuple(map(float, values)),
        predicted_records=twice,
        predicted=_estimate(sign * predicted, sign * drawn_twice),
        gain=_estimate(now - predicted, drawn.at(records[-1]) - drawn_twice),
    )


def fitted(num_records: Array, costs: Array) -> Law:
    """The law nearest to each row of costs, (draws, points), by least squares."""
    powers = num_records[None] ** -EXPONENTS[:, None]
    powers_apart = powers - powers.mean(1, keepdims=True)
    costs_apart = costs - costs.mean(1, keepdims=True)
    scales = np.maximum(0.0, costs_apart @ powers_apart.T / (powers_apart**2).sum(1))
    errors = ((costs_apart[:, None] - scales[..., None] * powers_apart[None]) ** 2).sum(-1)
    best = errors.argmin(1)
    scale = scales[np.arange(len(costs)), best]
    return Law(costs.mean(1) - scale * powers.mean(1)[best], scale, EXPONENTS[best])


def _noise(residuals: Array, shape: tuple[int, ...], seed: int) -> Array:
    """What a training's distance from the law may be, (draws, points), from those that there are."""
    freedom = max(1, len(residuals) - 3)
    generator = np.random.default_rng(seed)
    spread = np.sqrt((residuals**2).sum() / generator.chisquare(freedom, size=(shape[0], 1)))
    noise: Array = spread * generator.standard_normal(shape)
    return noise


def _estimate(value: float, draws: Array) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))
