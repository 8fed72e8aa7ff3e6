"""What drift is measured on is made once, by the base, and what can't be measured is refused at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds import write_base, write_records

from raytune_llm import cluster
from raytune_llm.data.examples import IGNORED
from raytune_llm.errors import InputError
from raytune_llm.jobs import drift
from raytune_llm.jobs.comparison import Promote, Promotion
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.publish import above_bound
from raytune_llm.jobs.stage_jobs import stage_job
from raytune_llm.methods.common.drift import ANSWER, TOP_K
from raytune_llm.models.frozen import with_references
from raytune_llm.training.objective import Report

DEMO = ["model=demo", "data=demo_sarcasm"]


@pytest.fixture
def asked(monkeypatch):
    """The functions that were run as tasks, here without Ray."""
    names = []

    def as_task(function, *, use_gpu):
        names.append(function.__name__)
        return function

    monkeypatch.setattr(cluster, "as_task", as_task)
    return names


@pytest.fixture(scope="module", params=["llama", "t5"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", request.param), *write_records(folder)


def job_of(world, home, *overrides):
    base, train, evaluation = world
    files = (f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}")
    return load("train", [*files, "evaluation.drift_prompts=4", "evaluation.drift_tokens=6", *overrides])


def test_the_base_answers_once_whatever_the_job(world, tmp_path, asked):
    job = job_of(world, tmp_path)
    prepared = prepare(job)
    first = drift.with_guard(prepared.examples, job, prepared.guard, use_gpu=False)
    again = job_of(world, tmp_path, "method=distill", "seed=7", "name=other")
    second = drift.with_guard(prepared.examples, again, prepare(again).guard, use_gpu=False)
    assert asked == ["answered"] and first.eval is prepared.examples.eval
    other = job_of(world, tmp_path, "evaluation.drift_tokens=5")
    drift.with_guard(prepared.examples, other, prepare(other).guard, use_gpu=False)
    assert asked == ["answered", "answered"]
    for one, same, prompt in zip(first.guard, second.guard, prepared.guard.prompts, strict=True):
        answer, kept = one[ANSWER], same[ANSWER]
        assert (answer.input_ids, answer.labels) == (kept.input_ids, kept.labels)
        assert answer.reference == kept.reference < 0
        for part in ("ids", "logprobs"):
            assert np.array_equal(getattr(answer.teacher, part), getattr(kept.teacher, part))
        learned = [label for label in answer.labels if label != IGNORED]
        assert 1 <= len(learned) <= 6 and answer.input_ids[: len(prompt)] == prompt
        assert answer.teacher.ids.shape == (len(learned), TOP_K)
        assert answer.teacher.ids[:, 0].tolist() == learned, "an answer is what the base finds likeliest"
    expected = with_references(job.model.load(), list(first.guard), pad_id=0, batch_size=4)
    assert [one[ANSWER].reference for one in first.guard] == pytest.approx(
        [one[ANSWER].reference for one in expected], abs=1e-4
    )


def test_a_damaged_file_is_named(world, tmp_path, asked):
    job = job_of(world, tmp_path)
    guard = prepare(job).guard
    drift.base_answers(job.home, job.model, guard, batch_size=4, use_gpu=False)
    (file,) = (tmp_path / "drift").iterdir()
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match=rf"{file.name} is damaged \(.*\); remove it to have it made anew"):
        drift.base_answers(job.home, job.model, guard, batch_size=4, use_gpu=False)


def test_no_drift_costs_nothing(world, tmp_path, asked):
    job = job_of(world, tmp_path, "evaluation.drift=false")
    prepared = prepare(job)
    assert prepared.guard is None and not prepared.examples.guard
    assert drift.with_guard(prepared.examples, job, None, use_gpu=False) is prepared.examples and not asked


def test_ones_own_prompts(tmp_path):
    file = tmp_path / "guard.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {place}"}) + "\n" for place in range(3)))
    guard = prepare(load("check", [*DEMO, f"data.guard={file}"])).guard
    assert len(guard.prompts) == 3
    assert guard.described(0.0314) == "eval/drift 0.0314 nats a token on 3 prompts of data.guard (base's own answers)"
    general = prepare(load("check", DEMO)).guard
    assert "0.0314 nats a token on 32 general prompts" in general.described(0.0314)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["promote.max_drift=0.3", "evaluation.drift=false"], "promote.max_drift=0.3 .*evaluation.drift=false"),
        (["promote.max_drift=0.3", "method=reward", "data=demo_preference"], "promote.max_drift=0.3 .*reward model"),
        (["promote.max_drift=-1"], "promote.max_drift=-1.0 is not allowed; allowed: ≥ 0 or null"),
        (["evaluation.drift_prompts=0"], "evaluation.drift_prompts=0 is not allowed"),
        (["promote=sometimes"], "promote.when: .*'sometimes', expected one of .*proven, always, never"),
        (["data.guard=[{path: a.jsonl, weight: 2}]"], "data.guard=.* no weights"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(overrides, message):
    with pytest.raises(InputError, match=message):
        load("train", [*DEMO, *overrides])


def test_prompts_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.guard=.*allowed: null: evaluation.drift=false measures none"):
        prepare(load("check", [*DEMO, "data.guard=absent.jsonl", "evaluation.drift=false"]))
    with pytest.raises(InputError, match=r"absent\.jsonl \(data\.guard\)"):
        prepare(load("check", [*DEMO, "data.guard=absent.jsonl"]))


def test_a_stage_that_trains_a_reward_model_has_no_prompts(tmp_path):
    job = load("train", ["model=demo", "data=demo_preference", "method=rlhf", "data.guard=own.jsonl"])
    stages = {stage.name: stage_job(job, stage) for stage in job.method.needs.stages}
    assert [own.data.guard is None for own in stages.values() if own.method.needs.score] == [True]
    assert all(own.promote == Promote(when=Promotion.always, max_drift=None) for own in stages.values())


def test_promote_is_short_for_its_condition():
    assert load("train", [*DEMO, "promote=never", "promote.max_drift=0.3"]).promote == Promote(
        when=Promotion.never, max_drift=0.3
    )
    assert load("sweep", DEMO).promote == Promote(when=Promotion.proven, max_drift=None)
    whole = load("train", [*DEMO, "promote={when: always, max_drift: 1}"]).promote
    assert whole == Promote(when=Promotion.always, max_drift=1.0)


@pytest.mark.parametrize(
    ("bound", "metrics", "expected"),
    [
        (None, {"eval/drift": 9.0}, None),
        (0.3, {"eval/drift": 0.3}, None),
        (0.3, {"eval/drift": 0.41}, "eval/drift 0.41 is above promote.max_drift=0.3"),
        (0.3, {"eval/drift": float("nan")}, "eval/drift nan is above promote.max_drift=0.3"),
        (0.3, {}, "eval/drift of its step isn't known, and promote.max_drift=0.3"),
    ],
)
def test_a_version_that_drifted_too_far_is_not_promoted(bound, metrics, expected):
    promote = replace(Promote(when=Promotion.always, max_drift=None), max_drift=bound)
    assert above_bound(promote, Report(step=1, metrics=metrics)) == expected
