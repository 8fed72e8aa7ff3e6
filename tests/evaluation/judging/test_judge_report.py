"""A judgement as people read it: tables, lines, warnings, plain values."""

import json

import pytest
from judge_world import pair

from raytune_llm.evaluation.judging.asking import Judgement, Usage
from raytune_llm.evaluation.judging.pairs import Choice, Judged
from raytune_llm.evaluation.judging.report import report_of

A, B, TIE = Choice.first, Choice.second, Choice.tie
WIN, LOSS, DRAW, NONE = (A, B), (B, A), (TIE, TIE), (None, A)


def report(orders, *, human=(), **facts):
    own = [Judged(pair(i, "right", "wrong"), one) for i, one in enumerate(orders)]
    people = [Judged(pair(i, "x", "y", "", "chosen", "rejected"), one) for i, one in enumerate(human)]
    usage = facts.pop("usage", Usage(10, 2, 1000, 50, 0.25))
    judgement = Judgement([*own, *people], usage, **facts)
    return report_of("m at url", judgement, num_examples=len(orders), are_labels=True, num_draws=200, seed=0)


def test_the_tables():
    found = report([WIN] * 12 + [DRAW, (A, A), LOSS], human=[WIN] * 3 + [LOSS])
    assert found.tables()["Judge"] == [
        ["", "tuned against base"],
        ["prompts", "15"],
        ["wins", "12"],
        ["ties", "2"],
        ["ties: identical answers", "0"],
        ["ties: the orders disagree", "1"],
        ["losses", "1"],
        ["no verdict", "0"],
        ["win rate", found.tables()["Judge"][8][1]],
        ["verdict", "better"],
    ]
    assert found.tables()["Judge"][8][1].startswith("0.867 [0.")
    trust = dict(found.tables()["Judge: how far to trust it"])
    assert trust[""] == "m at url"
    assert trust["verdict changes with the order"] == "1 of 19 (5 % [1, 25])"
    assert trust["favours the answer shown first"] == "1 of 1 (100 % [21, 100]), p = 1"
    assert trust["prefers the right answer"] == "12 of 15 (80 % [55, 93]); 2 ties, 1 against"
    assert trust["agrees with people"] == "3 of 4 (75 % [30, 95]); 0 ties, 1 against"
    cost = "10 requests (2 more cached), 1,000 prompt and 50 completion tokens, $0.2500"
    assert trust["cost"] == cost and not [key for key in trust if key.startswith("warning")]
    assert found.lines()[0].startswith("tuned against base: wins 12, ties 2, losses 1, win rate 0.867 [0.")
    assert found.lines()[-1] == cost


@pytest.mark.parametrize(("order", "place", "count"), [((A, A), "first", 10), ((B, B), "second", 0)])
def test_a_bias_by_order_is_a_warning(order, place, count):
    found = report([order] * 10 + [WIN] * 30)
    (warning,) = found.warnings()
    assert warning == (
        "the judge is biased by order: where its two verdicts disagree it favours the answer shown "
        f"{place} ({count} of 10 favour the first, p = 0.002); those pairs count as ties"
    )
    assert f"! {warning}" in found.lines()
    assert dict(found.tables()["Judge: how far to trust it"])["warning 1"] == warning
    assert found.as_json()["order_bias"]["is_biased"] is True


def test_a_judge_that_cannot_tell_answers_apart_is_a_warning():
    (warning,) = report([(A, A), (B, B)] * 4 + [WIN] * 8).warnings()
    assert warning.startswith("the verdict changes with the order of the answers in 8 of 16 (50 % [28, 72])")


def test_what_has_no_verdict_is_counted_with_an_example():
    found = report([WIN, NONE, NONE, NONE], malformed=["well,\n it depends", "?"], failures=["m at url: HTTP 500"])
    assert found.warnings() == [
        '3 of 4 pairs have no verdict; 2 conversations without a reply that can be read, such as "well, it depends"; '
        "1 request failed, such as: m at url: HTTP 500"
    ]


def test_a_judging_that_ended_early_says_why():
    found = report([WIN, NONE], failures=["down"], ended="6 requests failed")
    assert found.warnings() == ["judging ended early: 6 requests failed", "1 of 2 pairs has no verdict"]


def test_nothing_judged_is_no_win_rate():
    found = report([NONE] * 3)
    assert dict(found.tables()["Judge"][1:])["win rate"] == "-"
    assert found.as_json()["matches"][0]["win_rate"] is None
    assert dict(found.tables()["Judge: how far to trust it"])["verdict changes with the order"] == "0 of 0"


def test_a_judge_against_labels_or_people_is_a_warning():
    found = report([LOSS] * 5, human=[LOSS, LOSS, WIN])
    assert [line.split(" than")[0] for line in found.warnings()] == [
        "the judge decides more often against the right answer",
        "the judge decides more often against what people chose",
    ]


def test_unknown_prices_and_plain_values():
    found = report([WIN] * 8, usage=Usage(1, 0, 5, 5, None))
    assert found.lines()[-1].endswith("cost not known (prices are null)")
    content = json.loads(json.dumps(found.as_json()))
    assert content["matches"][0]["wins"] == 8 and content["matches"][0]["win_rate"]["value"] == 1.0
    assert content["agreement_with_labels"]["agrees"] == {"count": 8, "of": 8}
