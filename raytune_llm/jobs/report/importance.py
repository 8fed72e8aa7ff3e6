"""How much each knob decided whether a trial was among the best: PED-ANOVA (Watanabe et al., IJCAI 2023), by Optuna.

It compares where the best trials are along a knob with where all trials are, and unlike fANOVA it fits no forest, so it
needs no scikit-learn. Numbers are binned by quantiles, and the best are five trials at least: of one or two by
themselves a continuous knob would always seem to decide, as they are near to each other by chance.

Few trials make it unsure. Every share comes with the middle 90 % of those of random halves of the trials, which vary as
much as other trials would (delete-half jackknife, Shao and Wu 1989); a bootstrap would draw the best trial several
times, and be sure of its values.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from raytune_llm.jobs.report.data import Knob, TrialRun
from raytune_llm.sweep.axes import is_number

FEWEST_TRIALS = 8
"""With fewer results nothing is computed."""
BINS = 4
"""Of numbers that have more different values."""
BEST_SHARE, FEWEST_BEST = 0.1, 5
"""Which trials are the best."""
HALVES = 40
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A knob's share of what the knobs decided; all shares sum to 1."""

    knob: Knob
    share: float
    low: float
    high: float
    """Of the middle 90 % of the halves."""


def why_not(trials: Sequence[TrialRun], knobs: Sequence[Knob]) -> str | None:
    """Why importances can't be computed; None where they can."""
    count = len(_measured(trials, knobs))
    if len(knobs) < 2:
        return "Importance needs two knobs or more that trials differ in."
    if count < FEWEST_TRIALS:
        return f"Importance needs {FEWEST_TRIALS} trials with a result that have all knobs; here {count} have."
    return None


def importances(trials: Sequence[TrialRun], knobs: Sequence[Knob], *, lower_is_better: bool) -> list[Importance]:
    """Of every knob, the largest first; none where `why_not` has a reason."""
    if why_not(trials, knobs) is not None:
        return []
    measured = _measured(trials, knobs)
    sign = 1 if lower_is_better else -1
    costs = [sign * trial.best for trial in measured if trial.best is not None]
    binned = {knob.key: bins([trial.values[knob.key] for trial in measured]) for knob in knobs}
    whole = _shares(binned, costs, range(len(costs)))
    generator, half = np.random.default_rng(SEED), len(costs) // 2
    drawn = [generator.choice(len(costs), half, replace=False).tolist() for _ in range(HALVES)]
    low, high = np.quantile([_shares(binned, costs, places) for places in drawn], [0.05, 0.95], axis=0)
    rows = [
        Importance(knob=knob, share=whole[i], low=min(float(low[i]), whole[i]), high=max(float(high[i]), whole[i]))
        for i, knob in enumerate(knobs)
    ]
    return sorted(rows, key=lambda row: -row.share)


def bins(values: Sequence[object]) -> list[str]:
    """What is counted: each different value or, of many numbers, quarters of equal size."""
    if len({repr(value) for value in values}) <= BINS or not all(map(is_number, values)):
        return [repr(value) for value in values]
    numbers = np.array(values, dtype=np.float64)
    edges = np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1])
    return [str(place) for place in np.searchsorted(edges, numbers, side="right").tolist()]


def _measured(trials: Sequence[TrialRun], knobs: Sequence[Knob]) -> list[TrialRun]:
    return [trial for trial in trials if trial.best is not None and all(knob.key in trial.values for knob in knobs)]


def _shares(binned: dict[str, list[str]], costs: Sequence[float], places: Sequence[int]) -> list[float]:
    """Of the trials at these places; alike where no knob shows anything."""
    distributions = {key: CategoricalDistribution(sorted(set(values))) for key, values in binned.items()}
    study = _quiet_study()
    for place in places:
        params = {key: values[place] for key, values in binned.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=float(costs[place]))
        )
    best = max(BEST_SHARE, min(0.5, FEWEST_BEST / len(places)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(binned))
    shares = [float(np.nan_to_num(found[key])) for key in binned]
    return shares if sum(shares) > 0 else [1 / len(shares)] * len(shares)


def _quiet_study() -> optuna.Study:
    """A study in memory, without a line in the log."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(before)
