"""The vote over samples and each filter."""

import pytest

from raytune_llm.annotation.filters import repetition
from raytune_llm.annotation.reading import Reading
from raytune_llm.data.records import Rationale
from raytune_llm.jobs import config

GOLD, OPEN = Rationale("q", "Yes", None), Rationale("q", None, None)
GOOD = Reading("they live here", "yes")


def annotation(*overrides):
    return config.load(
        "annotate", ["teacher=local", "teacher.model.name_or_path=x/y", "data.train=x.jsonl", *overrides]
    ).annotation


def test_an_answer_that_agrees_gives_its_rationale_and_the_given_spelling():
    selection = annotation().select(GOLD, [GOOD])
    assert selection.record == Rationale("q", "Yes", "they live here") and selection.rejection is None


def test_labels_are_made_where_none_are_given():
    assert annotation().select(OPEN, [GOOD]).record == Rationale("q", "yes", "they live here")


def test_the_commonest_label_wins_with_its_first_rationale():
    readings = [
        Reading("no way at all", "no"),
        Reading("first right reason", "yes"),
        None,
        Reading("second reason", "Yes."),
    ]
    selection = annotation().select(OPEN, readings)
    assert selection.record == Rationale("q", "yes", "first right reason")
    strict = annotation("annotation.min_vote_share=0.6").select(OPEN, readings)
    assert (strict.record, strict.rejection) == (None, "samples disagree")


@pytest.mark.parametrize(
    ("reading", "rejection"),
    [
        (None, "not in the requested layout"),
        (Reading("they live apart", "no"), "contradicts the given label"),
        (Reading("short", "yes"), "rationale too short or too long"),
        (Reading("on and on " * 9, "yes"), "rationale repeats itself"),
    ],
)
def test_rejected_answers_leave_the_record_unchanged(reading, rejection):
    selection = annotation().select(GOLD, [reading])
    assert (selection.record, selection.rejection) == (GOLD, rejection)
    selection = annotation("annotation.labels=teacher").select(GOLD, [reading])
    assert (selection.record, selection.rejection) == (None, rejection)


def test_contradictions_can_be_kept():
    no = Reading("they live apart", "no")
    loose = annotation("annotation.agreement=false")
    assert loose.select(GOLD, [no]).record == Rationale("q", "Yes", "they live apart")
    theirs = annotation("annotation.agreement=false", "annotation.labels=teacher")
    assert theirs.select(GOLD, [no]).record == Rationale("q", "no", "they live apart")


def test_repetition():
    assert repetition(["a", "b", "c", "d"]) == 0
    assert repetition(["a", "b", "c", "a", "b", "c"]) == pytest.approx(1 / 4)
    assert repetition(["a"]) == 0
