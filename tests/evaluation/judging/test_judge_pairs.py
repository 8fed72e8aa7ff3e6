"""What a judge's reply means, and what two orders come to."""

import pytest
from judge_world import pair

from raytune_llm.data.records import Message, Preference, Supervised
from raytune_llm.evaluation.judging.pairs import Choice, Judged, human_pairs, pairs_of, read_choice
from raytune_llm.evaluation.report import Sample

A, B, TIE = Choice.first, Choice.second, Choice.tie


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A", A),
        (" b\n", B),
        ("Tie", TIE),
        ('{"verdict": "B", "reason": "shorter"}', B),
        ('{"reason": "both {right}", "verdict": "tie"}', TIE),
        ('```json\n{"verdict": "a"}\n```', A),
        ("```\nB\n```", B),
        ("", None),
        ("A is better", None),
        ("Answer: A", None),
        ('{"verdict": "C"}', None),
        ('{"verdict": 1}', None),
        ('["A"]', None),
        ('"A"', None),
        ('{"verdict": "A"} as B is wrong', None),
        ("null", None),
    ],
)
def test_a_reply_is_read_strictly(reply, expected):
    assert read_choice(reply) is expected


@pytest.mark.parametrize(
    ("orders", "score", "favoured"),
    [
        ((A, B), 1.0, None),
        ((B, A), 0.0, None),
        ((TIE, TIE), 0.5, None),
        ((A, A), 0.5, A),
        ((B, B), 0.5, B),
        ((A, TIE), 0.5, A),
        ((TIE, A), 0.5, A),
        ((TIE, B), 0.5, B),
        ((None, A), None, None),
        ((B, None), None, None),
        ((None, None), None, None),
    ],
)
def test_a_verdict_counts_when_both_orders_agree(orders, score, favoured):
    found = Judged(pair(0, "x", "y"), orders)
    assert (found.score, found.favoured) == (score, favoured)
    assert found.disagrees is (favoured is not None)


def test_the_newest_system_meets_each_other_one_and_those_between_the_first():
    samples = [Sample(f"q{i}", "r", {"base": "b", "champion": "c", "tuned": "t"}) for i in range(3)]
    found = pairs_of(samples, [0, 2], ("base", "champion", "tuned"))
    assert [(one.place, one.system, one.other, one.answer, one.other_answer) for one in found] == [
        (0, "tuned", "base", "t", "b"),
        (2, "tuned", "base", "t", "b"),
        (0, "tuned", "champion", "t", "c"),
        (2, "tuned", "champion", "t", "c"),
        (0, "champion", "base", "c", "b"),
        (2, "champion", "base", "c", "b"),
    ]


def test_preferences_are_pairs_without_reference():
    turn = (Message("user", "hello"),)
    records = [
        Supervised("p", "c"),
        Preference("p", "good", "bad"),
        Preference(turn, (Message("assistant", "hi"),), (Message("assistant", "no"),)),
        Preference("left", "out", "here"),
    ]
    found = human_pairs(records, 2)
    assert [(one.prompt, one.answer, one.other_answer, one.reference) for one in found] == [
        ("p", "good", "bad", ""),
        ("user: hello", "assistant: hi", "assistant: no", ""),
    ]
