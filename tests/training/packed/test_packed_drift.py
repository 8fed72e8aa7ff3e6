"""Drift of trials: packed or each on its own base, it is the same, at every evaluation."""

from dataclasses import replace

import pytest
import torch
from packed_oracle import VOCABULARY, make_examples, make_model, make_pack, make_spec, sft_terms, table_of
from worlds import Silent, precomputed, spec_of, write_base, write_records

from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.terms import DRIFT, DRIFT_LOSS
from raytune_llm.jobs.config import load
from raytune_llm.jobs.drift import answered
from raytune_llm.jobs.prepare import prepare
from raytune_llm.methods.common.drift import ANSWER, drift_terms
from raytune_llm.models.frozen import with_references, with_teacher_top_k
from raytune_llm.models.lora_weights import Weights
from raytune_llm.training.objective import DRIFT_SECONDS
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit

READING = {"pad_id": 0, "batch_size": 4}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "t5"])
def test_a_pack_scores_drift_as_the_model_with_the_merged_adapter_does(kind):
    model, is_encoder_decoder = make_model(kind), kind == "t5"
    answers = make_examples(6, seed=3, is_encoder_decoder=is_encoder_decoder, names=[ANSWER])
    answers = with_references(model, answers, **READING)
    guard = with_teacher_top_k(model, answers, top_k=8, vocabulary=VOCABULARY, **READING)
    examples = make_examples(12, is_encoder_decoder=is_encoder_decoder)
    pack = make_pack(model)
    table, answered_table = table_of(examples, model), table_of(guard, model)
    specs = [make_spec("a", learning_rate=3e-2), make_spec("b", lora_rank=1), make_spec("c", learning_rate=1e-9)]
    for spec in specs:
        pack.join(spec, table, sft_terms)
    before = pack.evaluate(answered_table, terms=drift_terms)
    for found in before.values():
        assert found.metrics() == pytest.approx({DRIFT: 0.0, DRIFT_LOSS: 0.0}, abs=1e-6)
    for _ in range(4):
        pack.step()
    found = {id: scores.metrics() for id, scores in pack.evaluate(answered_table, terms=drift_terms).items()}
    weights = {spec.trial_id: (pack.weights(spec.trial_id), spec.scale) for spec in specs}
    pack.close()
    assert found["a"][DRIFT] > found["b"][DRIFT] > 1e-6 > found["c"][DRIFT]
    for id, (adapter, scale) in weights.items():
        expected = evaluate(merged(kind, adapter, scale), guard, drift_terms, **READING).metrics()
        assert found[id] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def merged(kind: str, adapter: Weights, scale: float):
    """The base with an adapter's product added to its layers."""
    model = make_model(kind)
    with torch.no_grad():
        for name, (a, b) in adapter.items():
            model.get_submodule(name).weight += scale * b.to(torch.float64) @ a.to(torch.float64)
    return model


@pytest.fixture(scope="module", params=["llama", "t5"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", request.param), *write_records(folder)


def job_of(world, home, *overrides):
    base, train, evaluation = world
    files = (f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}", "run=r")
    small = ("tuning.eval_every=3", "tuning.batch_size=4", "tuning.steps=6", "tuning.adapter_size=4", "name=t")
    drift = ("evaluation.drift_prompts=5", "evaluation.drift_tokens=6", "adapter.dropout=0.0", "tuning.warmup_steps=0")
    return load("train", [*files, *small, *drift, *overrides])


def examples_of(job):
    guard = answered(job.model, prepare(job).guard, batch_size=4, use_gpu=False)
    assert len(guard) == 5
    return replace(precomputed(job).examples, guard=guard)


def alone(job, folder):
    reports = []
    folder.mkdir()
    place, options = WorkerContext(folder, 0, 1, False), {"run": Silent(), "progress": lambda *_: None, "resume": None}
    fit(spec_of(job), examples_of(job), place, report=lambda metrics, _: reports.append(metrics), **options)
    return reports


def test_every_evaluation_of_both_backends_reports_the_same_drift(world, tmp_path):
    job = job_of(world, tmp_path, "model.learning_rate=1e-2")
    spec = spec_of(job)
    options = {"wanted": 1, "max_lora_rank": 4, "device": "cpu", "log": lambda _: None}
    pack = PackedTrials(spec.config, examples_of(job), **options)
    pack.join(spec, Silent())
    packed = []
    while pack.trials:
        for pending in pack.advance():
            packed.append(pending.report)
            if pending.ended is not None:
                pack.leave(pending.trial_id)
    pack.close()
    expected = alone(job, tmp_path / "t")
    assert [report.step for report in packed] == [report["step"] for report in expected] == [3, 6]
    for one, other in zip(packed, expected, strict=True):
        for name in (DRIFT, DRIFT_LOSS):
            assert one.metrics[name] == pytest.approx(other[name], rel=2e-2, abs=1e-6), name
        assert one.metrics[DRIFT] > 1e-5
        for metrics in (one.metrics, other):
            assert 0 < metrics[DRIFT_SECONDS] < metrics["time/seconds"]


def test_a_policy_has_drift_too(tmp_path):
    world = write_base(tmp_path / "base", "llama"), *write_records(tmp_path)
    sampling = ("method=rlhf", "method/rewards=[exact]", "method.max_completion_tokens=4", "method.eval_prompts=2")
    reports = alone(job_of(world, tmp_path, *sampling, "model.learning_rate=1e-2"), tmp_path / "t")
    assert all(DRIFT in report and DRIFT_LOSS in report for report in reports)
