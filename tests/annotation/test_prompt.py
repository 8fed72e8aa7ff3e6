"""What a teacher is shown."""

import pytest

from raytune_llm.annotation.run import Questions
from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError
from raytune_llm.jobs import config

SOLVED = [Rationale(f"q{i}", f"a{i}", f"because {i}") for i in range(4)]


def job_of(*overrides):
    return config.load(
        "annotate", ["teacher=local", "teacher.model.name_or_path=x/y", "data.train=x.jsonl", *overrides]
    )


def test_few_shot_layout():
    job = job_of("prompt.instruction=Think.", "prompt.num_examples=1")
    questions = Questions.about([*SOLVED, Rationale("new", None, None)], job.prompt, job.annotation, seed=0)
    (ask,) = questions.asks[-1]
    shown = next(record for record in SOLVED if record.prompt in ask.prompt)
    assert ask.prompt == (
        f"Think.\n\nQuestion: {shown.prompt}\nReason: {shown.rationale}\nAnswer: {shown.label}\n\nQuestion: new"
    )
    assert questions.asks[:-1] == [[]] * 4 and not questions.warnings


def test_the_same_seed_shows_the_same_examples():
    prompt = job_of("prompt.num_examples=2").prompt
    assert prompt.head(SOLVED, 0) == prompt.head(SOLVED, 0)
    assert len({prompt.head(SOLVED, seed) for seed in range(9)}) > 1


def test_too_few_examples_are_said_and_records_with_reasons_asked_only_when_told():
    job = job_of()
    questions = Questions.about([Rationale("new", "a", None)], job.prompt, job.annotation, seed=0)
    assert "0 of prompt.num_examples=5 solved examples: data.train has no more" in questions.warnings[0]
    again = job_of("annotation.replace=true", "prompt=plain")
    questions = Questions.about(SOLVED, again.prompt, again.annotation, seed=0)
    assert [asks[0].prompt for asks in questions.asks] == ["q0", "q1", "q2", "q3"]


def test_a_teacher_that_explains_labels_is_asked_about_labelled_records_only():
    job = job_of("prompt=explain", "prompt.num_examples=0", "prompt.instruction=''")
    records = [Rationale("q", "a", None), Rationale("q", None, None)]
    questions = Questions.about(records, job.prompt, job.annotation, seed=0)
    assert [len(asks) for asks in questions.asks] == [1, 0]
    assert questions.asks[0][0].prompt == "Question: q\nAnswer: a"


def test_samples_are_questions_of_their_own():
    job = job_of("annotation.num_samples=3", "annotation.temperature=0.8", "prompt=plain")
    (asks,) = Questions.about([Rationale("q", None, None)], job.prompt, job.annotation, seed=0).asks
    assert [ask.sample for ask in asks] == [0, 1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompt.example='{input} {answer}'", "prompt.example={input} {answer}"),
        ("prompt.question='tell me'", "prompt.question=tell me"),
        ("prompt.question='{'", "prompt.question={ is not a template"),
        ("prompt.label_after=''", "prompt.label_after=''"),
        ("annotation.num_samples=3", "annotation.num_samples=3 is not allowed; allowed: 1 at annotation.temperature=0"),
        ("annotation.labels=mine", "annotation.labels"),
    ],
)
def test_bad_values_are_refused(override, message):
    with pytest.raises(InputError) as error:
        job_of(override)
    assert message in str(error.value)
