import math

import pytest

from raytune_llm.training.config import EarlyStopping
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.stopping import diverged, out_of_patience


def stopping(patience, min_delta=0.0):
    return EarlyStopping(patience=patience, min_delta=min_delta)


def best_index(values, lower):
    reports = [Report(step=step, metrics={"x": value}) for step, value in enumerate(values)]
    return Objective("x", lower_is_better=lower).best(reports).step


def test_best_is_the_earliest_of_equals_and_never_a_nan():
    assert best_index([2.0, 1.0, 1.0], lower=True) == 1
    assert best_index([0.1, 0.9, 0.9], lower=False) == 1
    assert best_index([math.nan, 3.0, math.inf], lower=True) == 1
    assert best_index([math.nan, math.inf], lower=True) == best_index([math.nan, -math.inf], lower=False) == 0
    assert Objective("x", lower_is_better=True).best([]) is None


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),
        ([3, 2, 2.5, 2.1], 3, False),
        ([3, 2, 2.5, 2.1, 2.0], 3, True),
        ([3, 2, 2.5, 1.9, 2.0], 3, False),
        ([1, 1, 1, 1], None, False),
        ([], 1, False),
    ],
)
def test_patience_counts_evaluations_without_improvement(values, patience, expected):
    rising = Objective("x", lower_is_better=False)
    assert out_of_patience(values, stopping(patience)) is expected
    assert out_of_patience([rising.cost(-value) for value in values], stopping(patience)) is expected


def test_an_improvement_smaller_than_min_delta_is_none():
    assert out_of_patience([2.0, 1.95, 1.91], stopping(2, 0.1))
    assert not out_of_patience([2.0, 1.95, 1.89], stopping(2, 0.1))


def test_diverged_when_the_last_value_is_not_finite():
    assert diverged([1.0, math.nan])
    assert not diverged([1.0])


def test_bad_settings_are_refused_by_key():
    with pytest.raises(ValueError, match=r"tuning.early_stopping.patience=0 is not allowed; allowed: ≥ 1 or null"):
        stopping(0)
