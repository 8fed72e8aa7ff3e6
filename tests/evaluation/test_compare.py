import math

import numpy as np
import pytest

from raytune_llm.evaluation.compare import VerdictKind, better, compare, number
from raytune_llm.evaluation.metrics import Metric, answers, mean, ratio
from raytune_llm.evaluation.terms import Better


def metric_of(values: np.ndarray) -> dict[str, Metric]:
    return {"eval/accuracy": mean(values, Better.higher)}


def test_values_are_the_whole_and_intervals_are_percentiles_of_paired_resamples():
    generator = np.random.default_rng(0)
    weight = generator.integers(1, 9, size=40).astype(float)
    base, tuned = (weight * generator.normal(level, 1, size=40) for level in (3.0, 2.5))
    systems = {
        name: {"eval/loss": ratio(sums, weight, Better.lower)} for name, sums in (("base", base), ("tuned", tuned))
    }
    found = compare(systems, num_draws=300, seed=7)

    index = np.random.default_rng(7).integers(40, size=(300, 40))
    draws = {name: sums[index].sum(1) / weight[index].sum(1) for name, sums in (("base", base), ("tuned", tuned))}
    for name, sums in (("base", base), ("tuned", tuned)):
        estimate = found.metrics["eval/loss"][name]
        assert estimate.value == pytest.approx(sums.sum() / weight.sum())
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(draws[name], [2.5, 97.5])))
    difference = found.difference("eval/loss")
    assert difference.value == pytest.approx((tuned - base).sum() / weight.sum())
    expected = np.percentile(draws["tuned"] - draws["base"], [2.5, 97.5])
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))
    assert (found.systems, found.num_examples, found.num_draws) == (("base", "tuned"), 40, 300)


def test_the_seed_decides_and_nothing_else():
    values = np.random.default_rng(0).normal(size=(2, 50))
    systems = {"base": metric_of(values[0]), "tuned": metric_of(values[1])}
    once = compare(systems, num_draws=200, seed=1)
    assert compare(systems, num_draws=200, seed=1) == once
    assert compare(systems, num_draws=200, seed=2) != once


def test_draws_in_several_chunks_are_the_same_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 50))
    systems = {"base": metric_of(values[0]), "tuned": metric_of(values[1])}
    whole = compare(systems, num_draws=200, seed=1).difference("eval/accuracy")
    monkeypatch.setattr("raytune_llm.evaluation.compare.CHUNK", 50 * 30)
    chunked = compare(systems, num_draws=200, seed=1).difference("eval/accuracy")
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high))


def test_intervals_cover_the_truth_about_95_times_in_100():
    """Paired Bernoulli and exponential data of known difference; 400 worlds each: the standard error is 1.1 %."""
    generator, covered = np.random.default_rng(3), {"accuracy": 0, "loss": 0}
    for world in range(400):
        hard = generator.random(150)
        right = [(hard < level).astype(float) for level in (0.5, 0.65)]
        right = [np.where(generator.random(150) < 0.2, 1 - side, side) for side in right]
        weight = generator.integers(1, 6, size=150).astype(float)
        sums = [weight * level + generator.exponential(1, 150) - 1 + hard for level in (2.0, 1.6)]
        systems = {
            name: {"accuracy": mean(right[side], Better.higher), "loss": ratio(sums[side], weight, Better.lower)}
            for side, name in enumerate(("base", "tuned"))
        }
        found = compare(systems, num_draws=400, seed=world)
        for metric, truth in (("accuracy", 0.6 * 0.15), ("loss", -0.4)):
            difference = found.difference(metric)
            covered[metric] += difference.low <= truth <= difference.high
    for metric, times in covered.items():
        assert 0.92 <= times / 400 <= 0.98, (metric, times)


def test_equal_systems_differ_significantly_about_5_times_in_100():
    generator, false_alarms = np.random.default_rng(4), 0
    for world in range(400):
        base, tuned = (generator.random((2, 120)) < 0.6).astype(float)
        found = compare({"base": metric_of(base), "tuned": metric_of(tuned)}, num_draws=400, seed=world)
        false_alarms += found.difference("eval/accuracy").significant
    assert 0.02 <= false_alarms / 400 <= 0.08


def test_a_system_does_not_differ_from_itself():
    values = np.random.default_rng(0).normal(size=30)
    found = compare({"base": metric_of(values), "tuned": metric_of(values.copy())}, num_draws=100, seed=0)
    difference = found.difference("eval/accuracy")
    assert (difference.value, difference.low, difference.high, difference.significant) == (0, 0, 0, False)
    assert better(found, "eval/accuracy").outcome is VerdictKind.alike


def test_verdicts_in_plain_words_follow_the_metrics_direction():
    generator = np.random.default_rng(0)
    base = generator.normal(2.0, 0.1, size=200)
    tuned = base - generator.normal(0.4, 0.1, size=200)
    systems = {
        name: {"eval/loss": mean(v, Better.lower), "eval/f1": mean(v, Better.higher)}
        for name, v in (("base", base), ("tuned", tuned))
    }
    found = compare(systems, num_draws=500, seed=0)
    difference = found.difference("eval/loss")
    low, high = number(-difference.high), number(-difference.low)
    assert difference.value == pytest.approx(-0.4, abs=0.03)

    lower = better(found, "eval/loss")
    assert lower.outcome is VerdictKind.better
    assert lower.text == f"tuned beats base on eval/loss by {number(-difference.value)} [{low}, {high}]"
    higher = better(found, "eval/f1")
    assert higher.outcome is VerdictKind.worse
    assert higher.text == f"tuned is worse than base on eval/f1 by {number(-difference.value)} [{low}, {high}]"


def test_no_significant_difference_is_reported_as_such():
    base, tuned = np.random.default_rng(0).normal(size=(2, 100))
    verdict = better(
        compare({"base": metric_of(base), "tuned": metric_of(tuned)}, num_draws=200, seed=0), "eval/accuracy"
    )
    assert verdict.outcome is VerdictKind.alike
    assert verdict.text.startswith("no significant difference between tuned and base on eval/accuracy: ")


@pytest.mark.parametrize(("num_better", "significant"), [(5, False), (6, True)])
def test_a_handful_of_examples_proves_nothing(num_better: int, significant: bool):
    base, tuned = np.zeros(300), np.zeros(300)
    tuned[:num_better] = 1
    found = compare({"base": metric_of(base), "tuned": metric_of(tuned)}, num_draws=2000, seed=0)
    assert found.difference("eval/accuracy").low > 0, "the bootstrap alone would have been content"
    assert found.difference("eval/accuracy").significant is significant
    assert ("too few examples that differ (5)" in better(found, "eval/accuracy").text) is not significant


def test_a_model_that_diverged_beats_nobody():
    base, tuned = np.ones(30), np.ones(30)
    tuned[3] = np.nan
    systems = {name: {"eval/loss": mean(values, Better.lower)} for name, values in (("base", base), ("tuned", tuned))}
    found = compare(systems, num_draws=50, seed=0)
    assert math.isnan(found.metrics["eval/loss"]["tuned"].low) and not found.difference("eval/loss").significant
    verdict = better(found, "eval/loss")
    assert verdict.outcome is VerdictKind.undefined
    assert verdict.text == "tuned and base cannot be compared on eval/loss: base 1.000, tuned nan"


def test_the_newest_is_compared_with_base_and_champion():
    generator = np.random.default_rng(0)
    base, champion, tuned = (generator.normal(level, 0.1, size=80) for level in (0.2, 0.6, 0.6))
    systems = {"base": metric_of(base), "champion": metric_of(champion), "tuned": metric_of(tuned)}
    found = compare(systems, num_draws=300, seed=0)
    assert [(d.system, d.reference) for d in found.differences] == [
        ("champion", "base"),
        ("tuned", "base"),
        ("tuned", "champion"),
    ]
    assert better(found, "eval/accuracy").outcome is VerdictKind.better
    assert better(found, "eval/accuracy", reference="champion").outcome is VerdictKind.alike


def test_f1_and_bleu_get_intervals_too():
    references = ["a", "b", "a", "b", "c", "c"] * 10
    right, wrong = list(references), ["a"] * 60
    found = compare({"base": answers(references, wrong), "tuned": answers(references, right)}, num_draws=200, seed=0)
    assert found.metrics["eval/f1/b"]["base"].value == 0 and found.metrics["eval/f1_macro"]["tuned"].low == 1
    assert better(found, "eval/f1_macro").outcome is VerdictKind.better
    texts = [f"one two three {i} five six" for i in range(32)]
    cut = [text.replace("three", "3") for text in texts]
    found = compare({"base": answers(texts, cut), "tuned": answers(texts, texts)}, num_draws=200, seed=0)
    assert found.metrics["eval/bleu"]["tuned"].low == pytest.approx(100)
    assert better(found, "eval/bleu").outcome is VerdictKind.better


def test_what_cannot_be_compared_is_refused():
    values = np.ones(5)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({}, num_draws=10, seed=0)
    with pytest.raises(ValueError, match=r"'tuned' has metrics \['eval/f1'\], but 'base' has \['eval/accuracy'\]"):
        compare({"base": metric_of(values), "tuned": {"eval/f1": mean(values, Better.higher)}}, num_draws=10, seed=0)
    with pytest.raises(ValueError, match="same examples"):
        compare({"base": metric_of(values), "tuned": metric_of(values[:4])}, num_draws=10, seed=0)
    with pytest.raises(ValueError, match="bootstrap_draws=0"):
        compare({"base": metric_of(values)}, num_draws=0, seed=0)
    systems = {"base": metric_of(values), "tuned": {"eval/accuracy": mean(values, Better.lower)}}
    with pytest.raises(ValueError, match="'tuned' has metrics of other directions than 'base'"):
        compare(systems, num_draws=10, seed=0)
    words = {"eval/answer_words": mean(values, Better.neither)}
    systems = {name: {**words, **metric_of(values)} for name in ("base", "tuned")}
    found = compare(systems, num_draws=10, seed=0)
    with pytest.raises(ValueError, match=r"'eval/answer_words' has no better direction; choose one of \['eval/acc"):
        better(found, "eval/answer_words")
    with pytest.raises(ValueError, match="metric='eval/nope'; metrics are"):
        better(found, "eval/nope")
