"""Every method in conf/method, without naming one: a new method arrives tested."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import precomputed, spec_of, write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.evaluation.loss import blank_scores, evaluate
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.config import CONF, load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.methods.base import TrainerInputs, metric_directions
from raytune_llm.models.forward import outputs
from raytune_llm.training.objective import Objective
from raytune_llm.training.trial import WorkerContext, fit


def config_of(method):
    """The method with its own settings."""
    return load("train", [f"method={method}", "model=demo", "data=demo_sarcasm"]).method


ALL = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
METHODS = [
    method for method in ALL if hasattr(config_of(method), "terms") and not config_of(method).needs.teacher_model
]
"""Those that learn from records alone; a method that samples answers has tests of its own."""
SHAPES = ["llama", "qwen", "t5"]
CASES = [
    (method, shape)
    for method in METHODS
    for shape in SHAPES
    if not config_of(method).needs.not_packable_reason or shape == "llama"
]
"""Methods that don't pack on one shape: what shapes differ in, they share with the others."""


@pytest.fixture(scope="module")
def shape(request, tmp_path_factory):
    return write_base(tmp_path_factory.mktemp(request.param), request.param)


def prepared_for(job):
    """The job's data with all that its method needs of frozen models."""
    return replace(prepare(job), examples=precomputed(job).examples)


def job_of(method, base, folder, *overrides):
    train, evaluation = write_records(folder, kinds=config_of(method).records)
    return load(
        "train",
        [
            f"method={method}",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            "tuning.warmup_steps=0",
            "tuning.adapter_size=4",
            *overrides,
        ],
    )


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_terms_are_one_number_per_example(method, shape, tmp_path):
    job = job_of(method, shape, tmp_path)
    prepared = prepared_for(job)
    model = job.model.load(score=job.method.needs.score)
    batch = prepared.examples.train[:4]
    found = {name: outputs(model, [example[name] for example in batch], pad_id=0) for name in batch[0]}
    terms = job.method.terms(found)
    assert any(term.coefficient for term in terms.values())
    for term in terms.values():
        assert term.sum.shape == term.weight.shape == (4,)
        assert torch.isfinite(term.sum).all() and (term.weight >= 0).all()


class Log:
    """A tracker's run that keeps what is logged."""

    def __init__(self):
        self.logged = []

    def log(self, step, metrics):
        self.logged.append((step, dict(metrics)))

    def finish(self, summary, failed): ...


def train(job, folder: Path, resume=None, milestones=()):
    """Run a trial here; its reports and its checkpoint folder."""
    prepared = prepared_for(job)
    reports, log = [], Log()
    folder.mkdir(parents=True, exist_ok=True)
    place = WorkerContext(folder, rank=0, world_size=1, use_gpu=False)
    ended = fit(
        spec_of(job, milestones),
        prepared.examples,
        place,
        report=lambda metrics, checkpoint: reports.append(metrics),
        run=log,
        progress=lambda step, metrics: None,
        resume=resume,
    )
    return prepared, reports, ended, folder / "checkpoint", log


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_a_training_reports_the_metrics_whose_directions_are_known_before_it(method, shape, tmp_path):
    job = job_of(method, shape, tmp_path, "tuning.steps=1", "tuning.batch_size=4", "tuning.eval_every=1")
    prepared, reports, *_ = train(job, tmp_path / "run")
    reported = {name for name in reports[-1] if name.startswith("eval/")}
    for example in (prepare(job).examples.eval[0], prepared.examples.eval[-1]):
        found = metric_directions(job.method, example, is_encoder_decoder=job.model.facts.is_encoder_decoder)
        assert found.keys() == reported and found[job.method.metric] is not Better.neither


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_weights_are_known_without_a_model(method, shape, tmp_path):
    job = job_of(method, shape, tmp_path)
    few, model = prepared_for(job).examples.eval, job.model.load(score=job.method.needs.score)
    scores = evaluate(model, few, job.method.terms, pad_id=0, batch_size=4).terms
    blank = blank_scores(few, job.method.terms, is_encoder_decoder=job.model.facts.is_encoder_decoder).terms
    both = (
        scores.keys() & blank.keys()
    )  # a frozen model's outputs are there on blank ones whether they are needed or not
    assert both
    for name in both:
        assert scores[name].weight.tolist() == blank[name].weight.tolist()


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_learns_four_examples_by_heart(method, adapter, shape, tmp_path):
    job = job_of(
        method, shape, tmp_path, f"adapter={adapter}", "tuning.steps=30", "tuning.batch_size=4", "tuning.eval_every=30"
    )
    job = job.with_values({"model.learning_rate": 1e-2 if adapter == "lora" else 3e-2})
    prepared = prepared_for(job)
    model = job.adapter.apply(job.model.load(score=job.method.needs.score), lora_rank=4, seed=0)
    few = prepared.examples.train[:4]
    before = evaluate(model, few, job.method.terms, pad_id=0, batch_size=4).metrics()["eval/loss"]
    trainer = job.method.trainer(
        TrainerInputs(
            model=model,
            examples=few,
            indices=[0, 1, 2, 3] * 30,
            tokenizer=prepared.tokens.tokenizer,
            arguments=dict(
                output_dir=str(tmp_path / "out"),
                max_steps=30,
                per_device_train_batch_size=4,
                learning_rate=job.trial_config().learning_rate,
                use_cpu=True,
                bf16=False,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                train_sampling_strategy="sequential",
                activation_checkpointing=False,
            ),
            callbacks=[],
        )
    )
    trainer.train()
    after = evaluate(model, few, job.method.terms, pad_id=0, batch_size=4).metrics()["eval/loss"]
    assert math.isfinite(after) and after < 0.7 * before


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_a_resumed_trial_ends_as_an_uninterrupted_one(method, shape, tmp_path):
    job = job_of(
        method, shape, tmp_path, "tuning.steps=8", "tuning.batch_size=4", "tuning.eval_every=4", "adapter.dropout=0.1"
    )
    _, whole, ended, _, _ = train(job, tmp_path / "whole")
    assert ended == "complete" and [r["step"] for r in whole] == [4, 8]

    class Killed(Exception):
        pass

    prepared = prepared_for(job)
    kept = tmp_path / "kept"

    def report_then_die(metrics, checkpoint):
        checkpoint.rename(kept)
        raise Killed

    (tmp_path / "first").mkdir()
    with pytest.raises(Killed):
        fit(
            spec_of(job),
            prepared.examples,
            WorkerContext(tmp_path / "first", 0, 1, False),
            report=report_then_die,
            run=Log(),
            progress=lambda step, metrics: None,
            resume=None,
        )
    _, resumed, _, _, _ = train(job, tmp_path / "second", resume=kept)
    assert [r["step"] for r in resumed] == [8]
    assert resumed[-1]["eval/loss"] == pytest.approx(whole[-1]["eval/loss"], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_run_and_another_does_not(method, tmp_path):
    base = write_base(tmp_path / "base", "llama")
    job = job_of(method, base, tmp_path, "tuning.steps=4", "tuning.batch_size=4", "tuning.eval_every=2")
    runs = [train(job, tmp_path / name)[1] for name in ("a", "b")]
    other = train(
        job_of(method, base, tmp_path, "tuning.steps=4", "tuning.batch_size=4", "tuning.eval_every=2", "seed=1"),
        tmp_path / "c",
    )[1]
    assert [r["eval/loss"] for r in runs[0]] == [r["eval/loss"] for r in runs[1]]
    assert runs[0][-1]["eval/loss"] != other[-1]["eval/loss"]


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_accumulation_changes_nothing(method, shape, tmp_path):
    whole = train(job_of(method, shape, tmp_path, "tuning.steps=4", "tuning.batch_size=4"), tmp_path / "whole")[1]
    parts = train(
        job_of(method, shape, tmp_path, "tuning.steps=4", "tuning.batch_size=4", "tuning.micro_batch_size=1"),
        tmp_path / "parts",
    )[1]
    assert parts[-1]["eval/loss"] == pytest.approx(whole[-1]["eval/loss"], rel=1e-5)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("metric", ["eval/nothing", "train/loss"])
def test_a_metric_that_no_evaluation_reports_is_refused_before_training(method, metric, tmp_path):
    base = write_base(tmp_path / "base", "llama")
    job = job_of(method, base, tmp_path, f"method.metric={metric}")
    with pytest.raises(InputError, match=rf"method\.metric={metric} is not allowed; with this method .*: eval/"):
        prepare(job)


@pytest.mark.parametrize(
    ("method", "metric"), [("dpo", "eval/rewards/chosen"), ("rlhf", "eval/entropy"), ("rlhf", "eval/completion_tokens")]
)
def test_a_metric_without_a_direction_is_refused(method, metric, tmp_path):
    base = write_base(tmp_path / "base", "llama")
    with pytest.raises(InputError, match=rf"method\.metric={metric} is not allowed; with this method .*: eval/"):
        prepare(job_of(method, base, tmp_path, f"method.metric={metric}"))


@pytest.mark.parametrize(
    ("method", "metric", "better"),
    [
        ("sft", "eval/loss", Better.lower),
        ("sft", "eval/token_accuracy", Better.higher),
        ("dpo", "eval/rewards/accuracies", Better.higher),
        ("rlhf", "eval/objective", Better.higher),
        ("rlhf", "eval/kl", Better.lower),
    ],
)
def test_trials_are_ranked_in_the_direction_that_the_method_gives_its_metric(method, metric, better, tmp_path):
    job = job_of(method, write_base(tmp_path / "base", "llama"), tmp_path, f"method.metric={metric}")
    config = job.trial_config(prepare(job).better)
    assert config.objective == Objective(metric, lower_is_better=better is Better.lower)


@pytest.mark.parametrize(("method", "shape"), CASES, indirect=["shape"])
def test_a_trainer_takes_a_base_in_half_precision(method, shape, tmp_path):
    """Also one whose head or adapter is fp32."""
    options = ["model.dtype=bfloat16", "tuning.steps=1", "tuning.batch_size=4", "tuning.eval_every=1"]
    _, reports, ended, *_ = train(job_of(method, shape, tmp_path, *options), tmp_path / "run")
    assert ended == "complete" and math.isfinite(reports[-1][config_of(method).metric])
