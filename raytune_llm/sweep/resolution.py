"""Can a sweep still learn anything? What its remaining trials may gain, against what its eval records can tell apart.

    gain = (best so far − lowest end that a running trial may come to) + what the trials to come may add to that

*A running trial* gains at most what those like it gained: of the trials that are over and got further than it, the
LIKE nearest in cost at the same share of their steps, the one that improved most from there on; in proportion where all
costs are positive, as losses are, else by difference.

*Trials to come*: with n results and m to come, the least of all of them is lower than that of the n by more than g
with a probability of at most

    (m/n) · (1 + g/(r·σ))^(−r),    σ = (r + 1)th least − mean of the r least,

where costs near the least thin out as an exponential distribution does (its spacings: Rényi, 1953; a power in place of
the exponential function is the price of estimating its scale σ from r spacings). Costs that are bounded below, as
losses are, thin out faster and gain less. g at 5 % is taken, or what the sweep has gained while its number of results
grew by the same factor, if that is more: a search that learns improves as it goes.

*The eval records* tell apart two trials that differ by more than the half-width of the paired 95 % interval of their
difference (evaluation/compare.py): here the best trial against each of the next few, the median of them. It falls by
1/√n with n records.

What this can't know: a space in which only few points are good, none of which has been tried; trials that improve late,
as none before them did; and that other eval records, or another metric, might tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raytune_llm.evaluation.compare import LEVEL, compare
from raytune_llm.evaluation.metrics import Metric
from raytune_llm.training.objective import Objective

LIKE = 19
"""Trials that a running one is compared with: a 20th of the same kind gains more than all of them once in 20 times."""
FEWEST_LIKE = 6
SPACINGS = 4
"""Between the least costs, from which their scale is estimated: with more, costs that aren't near the least count."""
FEWEST_RESULTS = 8
"""Of which the least 5 are then the better half or so."""
COMPARED = 5
"""Best trials whose differences show what the records tell apart."""
NUM_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial so far."""

    steps: Sequence[int]
    """At which it has reported, rising."""
    costs: Sequence[float]
    """At each of them, less is better (Objective.cost)."""
    most_steps: int
    """How long it may run."""
    is_over: bool

    @property
    def best(self) -> float:
        """The lowest cost so far, infinite before the first report."""
        return min(self.costs, default=math.inf)

    @property
    def share(self) -> float:
        """Of its steps, taken at its last report; 0 to 1."""
        return self.steps[-1] / self.most_steps if self.steps else 0.0

    def best_at(self, share: float) -> float:
        """The lowest cost at or before a share of its steps."""
        found = (cost for step, cost in zip(self.steps, self.costs, strict=True) if step <= share * self.most_steps)
        return min(found, default=math.inf)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a sweep can still learn anything."""

    stop: bool
    gain: float
    """What the remaining trials may improve the best by, in the metric's unit, ≥ 0; infinite where nothing is known."""
    resolution: float
    """The smallest difference that the eval records can tell, in the metric's unit; NaN where it wasn't measured."""
    records_needed: int | None
    """Eval records that could tell the possible gain; None where nothing is to be gained or it isn't known."""
    text: str
    """A sentence for the terminal."""


def judge(
    objective: Objective,
    curves: Mapping[str, Curve],
    *,
    num_pending: int,
    records: Callable[[str], Metric | None],
    seed: int,
) -> Judgement:
    """Judge a sweep by its trials so far.

    Args:
        curves: of all trials that have been started, by id, in the order in which they were.
        num_pending: trials still to be started.
        records: the objective's metric of a trial at its best report, on all eval records; None where there is none.
    """
    gain = possible_gain(list(curves.values()), num_pending)
    if not math.isfinite(gain):
        num_over = sum(curve.is_over for curve in curves.values())
        text = f"too early to say what the remaining trials may gain: {num_over} of {len(curves)} are over"
        return Judgement(stop=False, gain=gain, resolution=math.nan, records_needed=None, text=text)
    ranked = sorted((id for id, curve in curves.items() if math.isfinite(curve.best)), key=lambda id: curves[id].best)
    found = [metric for id in ranked[:COMPARED] if (metric := records(id)) is not None]
    if len(found) < 2:
        text = "what the eval records can tell isn't known: the statistics of two trials are needed"
        return Judgement(stop=False, gain=gain, resolution=math.nan, records_needed=None, text=text)
    resolution, num_records = half_width(found, seed), found[0].num_examples
    needed = math.ceil(num_records * (resolution / gain) ** 2) if gain > 0 and math.isfinite(resolution) else None
    stop = gain <= resolution
    return Judgement(
        stop=stop,
        gain=gain,
        resolution=resolution,
        records_needed=needed,
        text=sentence(objective.metric, stop, gain, resolution, num_records, needed),
    )


def sentence(metric: str, stop: bool, gain: float, resolution: float, num_records: int, needed: int | None) -> str:
    """A judgement for the terminal."""
    records = f"the {num_records} eval records tell apart {resolution:.2g}"
    if gain == 0:
        return f"the remaining trials are likely to gain nothing in {metric}; {records}"
    text = f"the remaining trials may gain {gain:.2g} in {metric}, {records}"
    return f"{text}; about {needed:,} eval records would decide" if stop else text


def possible_gain(curves: Sequence[Curve], num_pending: int) -> float:
    """What the best cost may still fall by; infinite where too few trials show it."""
    over = [curve for curve in curves if curve.is_over]
    scale, unscale = scale_of(curves)
    reported = [curve for curve in curves if not curve.is_over and math.isfinite(curve.best)]
    ends = [lowest_end(curve, over, scale, unscale) for curve in reported]
    results = {id(curve): curve.best for curve in over} | dict(zip(map(id, reported), ends, strict=True))
    ordered = [results[id(curve)] for curve in curves if id(curve) in results]
    num_to_come = num_pending + len(curves) - len(ordered)
    best = min((curve.best for curve in curves), default=math.inf)
    lowest = min(ordered, default=math.inf)
    if not (math.isfinite(best) and math.isfinite(lowest)):
        return math.inf
    return best - lowest + gain_of_more(ordered, num_to_come)


def scale_of(curves: Iterable[Curve]) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Between costs and the scale on which they fall alike, and back: logarithms where all are positive."""
    if all(cost > 0 for curve in curves for cost in curve.costs):
        return math.log, math.exp
    return float, float


def lowest_end(
    curve: Curve, over: Sequence[Curve], scale: Callable[[float], float], unscale: Callable[[float], float]
) -> float:
    """The cost that a running trial may end with if it improves as much as the most improved of those like it; −inf
    where there are too few of them."""
    falls = []
    for other in over:
        before = other.best_at(curve.share)
        if other.share > curve.share and math.isfinite(before):
            falls.append((abs(scale(before) - scale(curve.best)), scale(before) - scale(other.best)))
    if len(falls) < FEWEST_LIKE:
        return -math.inf
    return unscale(scale(curve.best) - max(fall for _, fall in sorted(falls)[:LIKE]))


def gain_of_more(results: Sequence[float], num_more: int) -> float:
    """By how much `num_more` results may lower the least of `results`, which are in the order in which they were found;
    infinite where there are too few to tell."""
    count = len(results)
    if num_more == 0:
        return 0.0
    if count < FEWEST_RESULTS:
        return math.inf
    ranked = sorted(results)
    scale = ranked[SPACINGS] - statistics.fmean(ranked[:SPACINGS])
    odds = num_more / count / (1 - LEVEL)
    likely = SPACINGS * (odds ** (1 / SPACINGS) - 1) * scale if odds > 1 else 0.0
    replayed = results[: max(1, count * count // (count + num_more))]
    return max(likely, min(replayed) - ranked[0])


def half_width(metrics: Sequence[Metric], seed: int) -> float:
    """Of the paired 95 % interval of the difference of the first and each other one: the median of them."""
    systems = {str(place): {"metric": metric} for place, metric in enumerate(metrics)}
    compared = compare(systems, num_draws=NUM_DRAWS, seed=seed)
    found = [compared.difference("metric", str(place), "0") for place in range(1, len(metrics))]
    return statistics.median((difference.high - difference.low) / 2 for difference in found)
