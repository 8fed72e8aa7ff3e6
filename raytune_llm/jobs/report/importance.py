"""How much each knob decided whether a trial was among the best: PED-ANOVA (Watanabe et al., IJCAI 2023), by Optuna.

It compares where the best tenth of the trials are along a knob with where all trials are, and unlike fANOVA it fits no
forest, so it needs no scikit-learn. Few trials make it unsure: every share comes with the middle 90 % of those that
resamples of the trials give.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from raytune_llm.jobs.report.data import Knob, TrialRun

FEWEST_TRIALS = 8
"""With fewer than so many results nothing is computed."""
FEW_VALUES = 8
"""A knob with at most so many different values is treated as categories."""
RESAMPLES = 40
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A knob's share of what the knobs decided; all shares sum to 1."""

    knob: Knob
    share: float
    low: float
    high: float
    """Of the middle 90 % of the resamples."""


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
    distributions = {knob.key: _distribution(knob, measured) for knob in knobs}
    drawn = np.random.default_rng(SEED).integers(len(measured), size=(RESAMPLES, len(measured)))
    whole = _shares(measured, distributions, lower_is_better)
    found = np.array([_shares([measured[i] for i in row], distributions, lower_is_better) for row in drawn])
    low, high = np.quantile(found, [0.05, 0.95], axis=0)
    rows = [
        Importance(knob=knob, share=float(whole[i]), low=float(low[i]), high=float(high[i]))
        for i, knob in enumerate(knobs)
    ]
    return sorted(rows, key=lambda row: -row.share)


def _measured(trials: Sequence[TrialRun], knobs: Sequence[Knob]) -> list[TrialRun]:
    return [trial for trial in trials if trial.best is not None and all(knob.key in trial.values for knob in knobs)]


def _distribution(knob: Knob, trials: Sequence[TrialRun]) -> BaseDistribution:
    values = [trial.values[knob.key] for trial in trials]
    if knob.scale == "categories" or len(set(values)) <= FEW_VALUES:
        return CategoricalDistribution(sorted({repr(value) for value in values}))
    return FloatDistribution(float(min(values)), float(max(values)), log=knob.scale == "log")


def _shares(trials: Sequence[TrialRun], distributions: dict[str, BaseDistribution], lower: bool) -> list[float]:
    study = _study(lower)
    study.add_trials([_frozen(trial, distributions) for trial in trials])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(distributions))
    shares = [float(np.nan_to_num(found[key])) for key in distributions]
    return shares if sum(shares) else [1 / len(shares)] * len(shares)


def _study(lower: bool) -> optuna.Study:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="minimize" if lower else "maximize")
    finally:
        optuna.logging.set_verbosity(before)


def _frozen(trial: TrialRun, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    def value_of(key: str, distribution: BaseDistribution) -> Any:
        value = trial.values[key]
        return repr(value) if isinstance(distribution, CategoricalDistribution) else float(value)

    params = {key: value_of(key, distribution) for key, distribution in distributions.items()}
    return optuna.trial.create_trial(params=params, distributions=distributions, value=trial.best)
