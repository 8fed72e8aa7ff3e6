"""The law through a learning curve's points, in closed form, and how often its interval is right."""

import numpy as np
import pytest

from raytune_llm.evaluation.terms import Better
from raytune_llm.sweep.label_curve import fitted, label_curve
from raytune_llm.training.curves import sparkline

RECORDS = (100, 200, 400, 800)


def law(count, floor=0.3, scale=2.0, exponent=0.4):
    return floor + scale * count**-exponent


def exact(values, draws=50):
    """Resamples that all are the whole."""
    return np.tile(np.asarray(values, dtype=float), (draws, 1))


@pytest.mark.parametrize("exponent", [0.1, 0.4, 0.9, 1.7])
def test_a_law_is_found_from_its_points(exponent):
    costs = np.array([[law(count, exponent=exponent) for count in RECORDS]])
    found = fitted(np.array(RECORDS, dtype=float), costs)
    assert found.exponent[0] == pytest.approx(exponent, rel=0.02)
    assert found.at(1600)[0] == pytest.approx(law(1600, exponent=exponent), rel=1e-3)


def test_points_on_a_law_are_extrapolated_with_hardly_any_interval():
    values = [law(count) for count in RECORDS]
    found = label_curve("eval/loss", Better.lower, RECORDS, values, exact(values), seed=0)
    assert (found.predicted_records, found.helps) == (1600, True)
    assert found.predicted.value == pytest.approx(law(1600), rel=1e-3)
    assert found.predicted.high - found.predicted.low < 0.02
    assert found.gain.value == pytest.approx(law(800) - law(1600), rel=0.01)
    assert "1600 records would give eval/loss about 0.40" in found.sentence()


def test_a_metric_that_rises_is_the_same_curve_upside_down():
    values = [1 - law(count) for count in RECORDS]
    found = label_curve("eval/accuracy", Better.higher, RECORDS, values, exact(values), seed=0)
    assert found.predicted.value == pytest.approx(1 - law(1600), rel=1e-3)
    assert found.predicted.low <= found.predicted.value <= found.predicted.high
    assert found.gain.value == pytest.approx(law(800) - law(1600), rel=0.01) and found.helps


def test_records_that_made_it_worse_are_expected_to_change_nothing():
    values = [0.4, 0.41, 0.43, 0.46]
    found = label_curve("eval/loss", Better.lower, RECORDS, values, exact(values), seed=0)
    assert found.predicted.value == pytest.approx(np.mean(values)) and found.gain.value == 0
    assert not found.helps and "can't tell" in found.sentence()


def test_the_eval_records_uncertainty_reaches_the_interval():
    values = np.array([law(count) for count in RECORDS])
    common = np.random.default_rng(0).normal(0, 0.05, (400, 1))
    apart = np.random.default_rng(1).normal(0, 0.1, (400, 4))
    shared = label_curve("eval/loss", Better.lower, RECORDS, values, values + common, seed=0)
    single = label_curve("eval/loss", Better.lower, RECORDS, values, values + apart, seed=0)
    assert shared.predicted.high - shared.predicted.low > 0.15, "which records were drawn shifts all points"
    assert shared.gain.high - shared.gain.low < 0.03 and shared.helps, "and leaves the gain as it is"
    assert not single.helps


@pytest.mark.parametrize(("scale", "share"), [(0.0, (0.0, 0.05)), (2.0, (0.4, 1.0))])
def test_noise_alone_is_seldom_taken_for_a_gain(scale, share):
    generator, claims = np.random.default_rng(0), []
    for seed in range(200):
        values = [law(count, scale=scale) + generator.normal(0, 0.02) for count in RECORDS]
        claims.append(label_curve("eval/loss", Better.lower, RECORDS, values, exact(values, 300), seed=seed).helps)
    assert share[0] <= np.mean(claims) <= share[1]


def test_the_interval_mostly_holds_what_more_records_give():
    generator, hits = np.random.default_rng(0), []
    for seed in range(200):
        values = [law(count) + generator.normal(0, 0.01) for count in RECORDS]
        found = label_curve("eval/loss", Better.lower, RECORDS, values, exact(values, 300), seed=seed).predicted
        hits.append(found.low <= law(1600) <= found.high)
    assert np.mean(hits) >= 0.93


def test_the_table_ends_with_what_is_extrapolated():
    values = [law(count) for count in RECORDS]
    lines = label_curve("eval/loss", Better.lower, RECORDS, values, exact(values), seed=0).text().splitlines()
    rows = [line.split() for line in lines[2:7]]
    assert [row[0] for row in rows] == ["100", "200", "400", "800", "1600"]
    assert [row[1] for row in rows[:4]] == [f"{value:.4f}" for value in values]
    assert [row[2] for row in rows] == list("█▅▄▂▁") and [row[3] for row in rows] == ["trained"] * 4 + ["extrapolated"]
    assert lines[-1].startswith("the interval covers which eval records were drawn")


def test_sparklines():
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█" and sparkline([3.0, 3.0]) == "▁▁"
