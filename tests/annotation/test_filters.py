"""The vote over samples and the filters, each by itself."""

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
    choice = annotation().choose(GOLD, [GOOD])
    assert choice.record == Rationale("q", "Yes", "they live here") and choice.reason is None


def test_labels_are_made_where_none_are_given():
    assert annotation().choose(OPEN, [GOOD]).record == Rationale("q", "yes", "they live here")


def test_the_commonest_label_wins_with_its_first_rationale():
    said = [
        Reading("no way at all", "no"),
        Reading("first right reason", "yes"),
        None,
        Reading("second reason", "Yes."),
    ]
    choice = annotation().choose(OPEN, said)
    assert choice.record == Rationale("q", "yes", "first right reason")
    strict = annotation("annotation.min_vote_share=0.6").choose(OPEN, said)
    assert (strict.record, strict.reason) == (None, "samples disagree")


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (None, "not laid out as asked"),
        (Reading("they live apart", "no"), "contradicts the given label"),
        (Reading("short", "yes"), "rationale too short or too long"),
        (Reading("on and on " * 9, "yes"), "rationale repeats itself"),
    ],
)
def test_thrown_away_answers_leave_the_record_what_it_had(reading, reason):
    choice = annotation().choose(GOLD, [reading])
    assert (choice.record, choice.reason) == (GOLD, reason)
    choice = annotation("annotation.labels=teacher").choose(GOLD, [reading])
    assert (choice.record, choice.reason) == (None, reason)


def test_contradictions_can_be_kept():
    no = Reading("they live apart", "no")
    loose = annotation("annotation.agreement=false")
    assert loose.choose(GOLD, [no]).record == Rationale("q", "Yes", "they live apart")
    theirs = annotation("annotation.agreement=false", "annotation.labels=teacher")
    assert theirs.choose(GOLD, [no]).record == Rationale("q", "no", "they live apart")


def test_repetition():
    assert repetition(["a", "b", "c", "d"]) == 0
    assert repetition(["a", "b", "c", "a", "b", "c"]) == pytest.approx(1 / 4)
    assert repetition(["a"]) == 0
