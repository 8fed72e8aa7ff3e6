"""Prompts, and the records that get one."""

import pytest

from raytune_llm.annotation.run import plan_requests
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
    plan = plan_requests([*SOLVED, Rationale("new", None, None)], job.prompt, job.annotation, seed=0)
    (request,) = plan.requests[-1]
    shown = next(record for record in SOLVED if record.prompt in request.prompt)
    assert request.prompt == (
        f"Think.\n\nQuestion: {shown.prompt}\nReason: {shown.rationale}\nAnswer: {shown.label}\n\nQuestion: new"
    )
    assert plan.requests[:-1] == [[]] * 4 and not plan.warnings


def test_the_same_seed_shows_the_same_examples():
    prompt = job_of("prompt.num_examples=2").prompt
    assert prompt.preamble(SOLVED, 0) == prompt.preamble(SOLVED, 0)
    assert len({prompt.preamble(SOLVED, seed) for seed in range(9)}) > 1


def test_too_few_examples_give_a_warning_and_rationales_are_replaced_only_on_request():
    job = job_of()
    plan = plan_requests([Rationale("new", "a", None)], job.prompt, job.annotation, seed=0)
    assert "0 of prompt.num_examples=5 solved examples: data.train has no more" in plan.warnings[0]
    again = job_of("annotation.replace=true", "prompt=plain")
    plan = plan_requests(SOLVED, again.prompt, again.annotation, seed=0)
    assert [requests[0].prompt for requests in plan.requests] == ["q0", "q1", "q2", "q3"]


def test_a_teacher_that_explains_labels_annotates_labelled_records_only():
    job = job_of("prompt=explain", "prompt.num_examples=0", "prompt.instruction=''")
    records = [Rationale("q", "a", None), Rationale("q", None, None)]
    plan = plan_requests(records, job.prompt, job.annotation, seed=0)
    assert [len(requests) for requests in plan.requests] == [1, 0]
    assert plan.requests[0][0].prompt == "Question: q\nAnswer: a"


def test_each_sample_is_a_request():
    job = job_of("annotation.num_samples=3", "annotation.temperature=0.8", "prompt=plain")
    (requests,) = plan_requests([Rationale("q", None, None)], job.prompt, job.annotation, seed=0).requests
    assert [request.sample for request in requests] == [0, 1, 2]


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
