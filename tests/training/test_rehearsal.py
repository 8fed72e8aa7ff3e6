"""Rehearsals of packs and of trainers on a tiny base: what they find, and that nothing of them is kept."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from worlds import precomputed, spec_of, write_base, write_records

from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.jobs.config import load
from raytune_llm.jobs.drift import answered
from raytune_llm.jobs.prepare import prepare
from raytune_llm.methods.common.drift import drift_terms
from raytune_llm.training import rehearsed_answers
from raytune_llm.training.packed import rehearsal as packed_rehearsal
from raytune_llm.training.packed.rehearsal import rehearse
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.rehearsal import MOST_SECONDS, SHARE, SHARE_OF_BUDGET, Asked, Script
from raytune_llm.training.tracking.base import CompositeRun
from raytune_llm.training.trainer_rehearsal import (
    EVALUATED,
    EVERY,
    STEPS,
    Enough,
    Timeline,
    _part,
    rehearse_trainer,
)

ASKED = Asked(prompts=([5, 6, 7], [8, 9], [10, 11, 12, 13]), stop_ids=(1,), max_new_tokens=4, batch_size=2, threads=1)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    train, evaluation = write_records(folder)
    return load(
        "train",
        [
            *(f"model.name_or_path={write_base(folder / 'base', 'llama')}", f"data.train={train}"),
            *(f"data.eval={evaluation}", f"home={folder / 'home'}", "run=r", "name=t", "tuning.eval_every=2"),
            *("tuning.batch_size=4", "tuning.steps=6", "tuning.adapter_size=4", "model.learning_rate=1e-2"),
        ],
    )


@pytest.fixture(scope="module")
def examples(job):
    return precomputed(job).examples


@pytest.fixture
def script(job):
    return Script(spec=spec_of(job, id="rehearsal"), trial_steps=100, asked=ASKED)


def packed_of(job, examples):
    return PackedTrials(job.trial_config(), examples, wanted=3, max_lora_rank=4, device="cpu", log=lambda line: None)


def test_a_pack_is_rehearsed_with_all_a_half_and_one_of_its_slots(job, examples, script):
    packed = packed_of(job, examples)
    found = rehearse(packed, script, start_seconds=1.5)
    packed.close()
    assert (list(found.steps), sorted(found.evaluations), found.capacity) == ([3, 2, 1], [1, 3], 3)
    assert min(*found.steps.values(), *found.evaluations.values(), found.checkpoint_seconds) > 0
    assert (found.source, found.start_seconds, found.answering) == ("measured", 1.5, None)
    assert found.comparing.read_seconds > 0
    assert 0 <= found.comparing.num_tokens <= ASKED.max_new_tokens
    memory = found.memory
    assert memory.base == sum(parameter.nbytes for parameter in packed.model.parameters())
    assert memory.peak >= memory.base + memory.slots
    assert not Path(job.home).exists()


def test_a_rehearsed_pack_trains_as_one_that_was_not(job, examples, script):
    def trained(rehearses):
        packed = packed_of(job, examples)
        if rehearses:
            rehearse(packed, script, start_seconds=0.0)
            assert not packed.trials
            assert not packed.pack.trial_ids
        packed.join(spec_of(job, id="a"), CompositeRun(()))
        for _ in range(3):
            packed.advance()
        weights = packed.pack.weights("a")
        packed.close()
        return weights

    assert_close(trained(True), trained(False))


def test_what_an_evaluation_takes_whatever_its_size_weighs_no_more_in_a_small_part(script, monkeypatch):
    lengths = torch.full((1000,), 10)
    packed = SimpleNamespace(
        eval=SimpleNamespace(lengths=lengths),
        guard=None,
        trials={"a": SimpleNamespace(spec=SimpleNamespace(config=script.spec.config))},
    )
    counts = []

    def evaluate(packed, count):
        counts.append(count)
        tokens = 10 * min(count, 1000)
        return tokens, 0.5 + 0.01 * tokens + (5.0 if len(counts) == 1 else 0.0)

    monkeypatch.setattr(packed_rehearsal, "_evaluate", evaluate)
    assert packed_rehearsal._evaluation_seconds(packed, 4.0) == pytest.approx(0.5 + 0.01 * 10_000)
    assert counts[:3] == [4, 4, 14] and counts[-1] < 1000
    assert packed_rehearsal._evaluation_seconds(packed, 1e6) == pytest.approx(0.5 + 0.01 * 10_000)
    assert counts[-1] >= 1000


@pytest.fixture
def drifting(job, examples):
    """The examples with general prompts, which the base has answered."""
    short = replace(prepare(job).guard, max_new_tokens=4)
    return replace(examples, guard=answered(job.model, short, batch_size=32, use_gpu=False))


def test_what_measures_drift_belongs_to_a_packs_rehearsed_evaluation(job, drifting, script, monkeypatch):
    packed, counts = packed_of(job, drifting), []
    evaluate = packed.pack.evaluate

    def counted(table, trial_ids=None, terms=None):
        counts.append((table is packed.guard, len(trial_ids), terms))
        return evaluate(table, trial_ids, terms)

    monkeypatch.setattr(packed.pack, "evaluate", counted)
    rehearse(packed, script, start_seconds=0.0)
    packed.close()
    assert [found for found in counts if found[0]] == [(True, 3, drift_terms), (True, 1, drift_terms)]


def test_a_part_of_the_eval_set_is_scaled_without_the_prompts_of_drift(drifting):
    num_tokens = int(drifting.guard.lengths().sum())
    assert _part(drifting, whole=False) == (drifting.eval, 1.0)
    whole = ExampleTable.of([*drifting.eval] * 16)
    part, scale = _part(replace(drifting, eval=whole), whole=False)
    own, all_of_it = int(part.lengths().sum()), int(whole.lengths().sum())
    assert len(part) == EVALUATED < len(whole)
    assert scale == pytest.approx((all_of_it + num_tokens) / (own + num_tokens))


def test_a_trainer_is_rehearsed_in_a_folder_that_goes(job, examples, script):
    found = rehearse_trainer(script, examples, use_gpu=False, start_seconds=1.0)
    assert set(found.steps) == set(found.evaluations) == {1}
    assert min(found.steps[1], found.evaluations[1], found.load_seconds) > 0
    assert found.start_seconds > 1.0
    assert (found.capacity, found.comparing is not None) == (1, True)
    assert not Path(job.home).exists()


def test_a_timeline_counts_steps_that_follow_another_and_ends_after_an_evaluation(script, monkeypatch):
    times = iter([10.0, 11.0, 12.0, 15.0])
    monkeypatch.setattr("raytune_llm.training.trainer_rehearsal.time.monotonic", lambda: next(times))
    timeline = Timeline(script)
    for step in (1, 2, 3):
        timeline(step, {})
    with pytest.raises(Enough):
        timeline(3, {"eval/loss": 1.0})
    assert (timeline.step_seconds, timeline.evaluated) == (1.0, [3.0])
    assert STEPS % EVERY == 0


def test_the_limit_grows_with_the_training():
    script = Script(spec=None, trial_steps=1000, asked=None)
    assert script.limit(0.0) == 3.0
    assert script.limit(1.0) == SHARE * 1000
    assert script.limit(100.0) == MOST_SECONDS
    assert script.within(math.inf) == script
    assert script.within(20.0).limit(100.0) == 20.0 * SHARE_OF_BUDGET


def test_answers_are_measured_by_reading_writing_and_a_few_whole_ones(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rehearsed_answers.time, "monotonic", lambda: now[0])

    def answer(prompts, max_new_tokens, stop_ids):
        tokens = len(prompts) * (min(3, max_new_tokens) if stop_ids else max_new_tokens)
        now[0] += 0.1 * len(prompts) + 0.01 * (tokens - len(prompts))
        return tokens

    asked = Asked(prompts=([1] * 20,) * 12, stop_ids=(1,), max_new_tokens=64, batch_size=6, threads=1)
    found = rehearsed_answers.measured(answer, asked, limit=40.0)
    assert found.read_seconds == pytest.approx(0.1)
    assert found.token_seconds == pytest.approx(0.01)
    assert found.num_tokens == 3.0
    hurried = rehearsed_answers.measured(answer, asked, limit=0.01)
    assert hurried.num_tokens == 64.0


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with rehearsed_answers.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
