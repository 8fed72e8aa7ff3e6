"""Pairs that teach nothing, and what their lengths give away."""

import pytest
from test_doctor import examine, found, splits, warnings

from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.doctor.results import Pairs
from raytune_llm.data.findings import Severity
from raytune_llm.data.records import Message, Preference


def pairs(longer: int, shorter: int) -> list[Preference]:
    made = [Preference(f"ask {i}", f"a long answer {i}", f"short {i}") for i in range(longer)]
    return made + [Preference(f"ask {i}", f"brief {i}", f"a long answer {i}") for i in range(longer, longer + shorter)]


@pytest.mark.parametrize(
    ("longer", "shorter", "warned"),
    [
        (
            83,
            17,
            "train: the longer answer is preferred in 83% of the pairs: a model may learn that longer is better; ",
        ),
        (
            10,
            90,
            "train: the shorter answer is preferred in 90% of the pairs: a model may learn that shorter is better; ",
        ),
        (79, 21, None),
        (20, 0, None),
    ],
)
def test_length_bias(longer, shorter, warned):
    diagnosis = examine(splits(pairs(longer, shorter)))
    assert diagnosis.splits["train"].pairs == Pairs(longer + shorter, longer, shorter)
    assert diagnosis.warnings == ([] if warned is None else [f"{warned}add pairs in which it isn't"])
    assert any(
        note.startswith(f"the longer answer is preferred in {longer / (longer + shorter):.0%}")
        for note in diagnosis.notes
    )


def test_pairs_that_differ_in_whitespace_only():
    same = [Preference(f"ask {i}", f"yes {i}", f" yes  {i}\n") for i in range(5)]
    [equal] = found(examine(splits(pairs(20, 20) + same)), "equal_pairs")
    assert (equal.count, equal.severity, equal.places[0].where) == (5, Severity.warning, "data.train, record 41")
    assert equal.text == (
        "train: 5 of 45 pairs have answers that differ in whitespace only, so nothing is preferred: leave them out"
    )
    assert examine(splits(same)).verdict.startswith(
        "not usable: train: 5 of 5 pairs have answers that differ in whitespace only"
    )


def test_conversations_are_compared_as_texts():
    def turn(text: str) -> tuple[Message, ...]:
        return (Message("assistant", text),)

    same = [Preference((Message("user", str(i)),), turn("yes"), turn("yes ")) for i in range(3)]
    assert found(examine(splits(same)), "equal_pairs")[0].count == 3
    assert not [one for one in warnings(pairs(20, 20)) if "whitespace" in one]


@pytest.mark.parametrize(("zeros", "ones", "warned"), [(90, 10, True), (70, 30, False), (25, 0, False)])
def test_a_choice_that_is_nearly_always_the_same(zeros, ones, warned):
    def row(i: int, choice: int) -> dict[str, object]:
        return {"input_text": f"ask {i}", "candidate_0": f"one {i}", "candidate_1": f"two {i}", "choice": choice}

    made = [parse(row(i, int(i >= zeros)), (Preference,)) for i in range(zeros + ones)]
    balance = found(examine(splits(made)), "choice_balance")
    text = "train: choice is 0 in 90% of the pairs: is it the preferred candidate's number?"
    assert [one.text for one in balance] == ([text] if warned else [])
