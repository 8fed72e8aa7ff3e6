"""Distilling step-by-step: what each task learns, the metric, and the baselines that are values of the same method."""

import json
from dataclasses import replace

import pytest
import torch
from worlds import write_base, write_records

from raytune_llm.data.examples import IGNORED
from raytune_llm.data.records import Rationale
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import config
from raytune_llm.jobs.prepare import check_knobs, prepare
from raytune_llm.methods.base import TrainerInputs, metric_directions
from raytune_llm.models.outputs import Outputs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def job_of(base, folder, *overrides, method="dss", command="train"):
    train, evaluation = write_records(folder, kinds=(Rationale,))
    return config.load(
        command,
        [
            f"method={method}",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={folder}",
            *overrides,
        ],
    )


def test_what_decides_the_encoding_is_no_axis_of_a_sweep(base, tmp_path):
    axis = "sweep.space.method.label_prefix=['','[label] ']"
    with pytest.raises(InputError, match=r"label_prefix.*no axis: all trials share one method\.label_prefix"):
        check_knobs(job_of(base, tmp_path, axis, command="sweep"))


def tokens_of(job):
    return Tokens(job.model.tokenizer(), max_tokens=128, is_encoder_decoder=False)


def learned(sequence, tokens):
    """(what is given, what is learned) of a sequence, as text."""
    given = [i for i, label in zip(sequence.input_ids, sequence.labels, strict=True) if label == IGNORED]
    return tokens.tokenizer.decode(given), tokens.tokenizer.decode([i for i in sequence.labels if i != IGNORED])


def test_each_task_has_its_own_prefix_and_target(base, tmp_path):
    job = job_of(base, tmp_path)
    tokens = tokens_of(job)
    example = job.method.encode(Rationale("red cat", "cat", "a cat sleeps"), tokens)
    assert learned(example["label"], tokens) == ("red cat\n", "cat</s>")
    assert learned(example["rationale"], tokens) == ("[rationale] red cat\n", "a cat sleeps</s>")
    assert job.method.question(Rationale("red cat", "cat", None)) == ("red cat", "cat")
    assert job.method.question(Rationale("red cat", None, "a cat sleeps")) is None


def test_the_label_tasks_own_prompt_is_used(base, tmp_path):
    job = job_of(base, tmp_path, "method.label_prefix='[label] '")
    assert job.method.question(Rationale("red cat", "cat", None)) == ("[label] red cat", "cat")


def test_a_record_contributes_what_it_has(base, tmp_path):
    job = job_of(base, tmp_path)
    tokens = tokens_of(job)
    for record, empty in ((Rationale("a", "b", None), "rationale"), (Rationale("a", None, "b"), "label")):
        example = job.method.encode(record, tokens)
        assert set(example) == {"label", "rationale"}
        assert example[empty].labels == [IGNORED] and len(example[empty].input_ids) == 1
    assert job.method.encode(Rationale("a", None, None), tokens) is None


def test_terms_against_the_formula(base, tmp_path):
    """Three examples: all known, no rationale, no label; each task is a mean over its own tokens."""
    method = job_of(base, tmp_path, "method.alpha=0.3").method

    def outputs(logprobs, mask, correct):
        return Outputs(*(torch.tensor(rows, dtype=torch.float64) for rows in (logprobs, mask, correct)))

    label = outputs([[-1, -2], [-4, 0], [0, 0]], [[1, 1], [1, 0], [0, 0]], [[1, 1], [0, 0], [0, 0]])
    rationale = outputs([[-0.5], [0], [-1.5]], [[1], [0], [1]], [[1], [0], [0]])
    terms = method.terms({"label": label, "rationale": rationale})
    value = {name: (term.sum.sum() / term.weight.sum()).item() for name, term in terms.items()}
    assert value == pytest.approx({"label_loss": 7 / 3, "rationale_loss": 1.0, "accuracy": 0.5})
    coefficients = {name: term.coefficient for name, term in terms.items()}
    assert coefficients == pytest.approx({"label_loss": 0.3, "rationale_loss": 0.7, "accuracy": 0.0})
    assert terms["accuracy"].weight.tolist() == [1, 1, 0]


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_accuracy_is_that_of_greedy_answers(shape, tmp_path):
    """A model tuned to be right in some records: teacher-forced accuracy equals exact match of what it generates."""
    job = job_of(
        write_base(tmp_path / "base", shape), tmp_path, "adapter=full", "model.learning_rate=0.05", "method.alpha=1"
    )
    prepared = prepare(job)
    model = job.adapter.apply(job.model.load(), lora_rank=4, seed=0)
    arguments = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": job.trial_config().learning_rate,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    trainer = job.method.trainer(
        TrainerInputs(
            model=model,
            examples=prepared.examples.train,
            indices=list(range(8)) * 20,
            tokenizer=prepared.tokens.tokenizer,
            arguments=arguments,
            callbacks=[],
        )
    )
    trainer.train()
    records = [*prepared.splits.train, *prepared.splits.eval]
    questions = [job.method.question(record) for record in records]
    scores = evaluate(
        model, [*prepared.examples.train, *prepared.examples.eval], job.method.terms, pad_id=0, batch_size=8
    )
    completions = generate(
        model,
        prepared.tokens.tokenizer,
        [prepared.tokens.prompt(prompt) for prompt, _ in questions],
        max_new_tokens=16,
        stop_ids=prepared.tokens.stop_ids(),
        batch_size=8,
    )
    right = [text == reference for text, (_, reference) in zip(completions, questions, strict=True)]
    assert 0 < sum(right) < len(right)
    assert scores.terms["accuracy"].sum.astype(bool).tolist() == right


def test_baselines_are_values(base, tmp_path):
    single = job_of(
        base,
        tmp_path,
        "method.alpha=1",
        "method.label_target='{rationale} The answer is {label}'",
        "evaluation.answer_after='The answer is '",
    )
    tokens = tokens_of(single)
    record = Rationale("red cat", "cat", "a cat sleeps.")
    example = single.method.encode(record, tokens)
    assert learned(example["label"], tokens)[1] == "a cat sleeps. The answer is cat</s>"
    assert single.method.question(record) == ("red cat", "cat")
    assert single.evaluation.answer_after == "The answer is "
    control = job_of(base, tmp_path, "method.rationale_target='{label}'")
    assert learned(control.method.encode(record, tokens)["rationale"], tokens)[1] == "cat</s>"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("method.alpha=1.5", "method.alpha=1.5"),
        ("method.rationale_prefix=''", "method.rationale_prefix=''"),
        ("method.label_target=yes", "method.label_target=yes"),
        ("method.label_target='{answer}'", "{answer}"),
        ("method.rationale_target='{'", "method.rationale_target={"),
    ],
)
def test_bad_values_are_refused_by_their_key(override, key, base, tmp_path):
    with pytest.raises(InputError) as error:
        job_of(base, tmp_path, override)
    assert key in str(error.value) and "allowed" in str(error.value)


def test_eval_without_labels_is_refused_before_training(base, tmp_path):
    job = job_of(base, tmp_path)
    lines = [json.dumps({"input_text": "red cat", "rationale": "a cat sleeps"})]
    (tmp_path / "eval.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"no record of eval has a label \(output_text\)"):
        prepare(job)


@pytest.mark.parametrize(
    ("overrides", "record", "lacking"),
    [
        ([], {"input_text": "red", "output_text": "cat"}, "rationale, which method.rationale_target names"),
        ([], {"input_text": "red", "rationale": "so"}, "label, which method.label_target names"),
        (["method.rationale_target='{label}'"], {"input_text": "red", "output_text": "cat"}, None),
        (["method.alpha=1"], {"input_text": "red", "output_text": "cat"}, None),
    ],
)
def test_a_task_without_a_single_target_is_refused(overrides, record, lacking, base, tmp_path):
    job = job_of(base, tmp_path, *overrides)
    lines = [json.dumps(record | {"input_text": f"red {i}"}) for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    if lacking is None:
        assert prepare(job)
    else:
        with pytest.raises(InputError, match=f"no record of data.train has a {lacking}: there is nothing to learn for"):
            prepare(job)


def test_eval_without_rationales_has_the_label_tasks_loss_alone(base, tmp_path):
    job = job_of(base, tmp_path, "method.alpha=0.25")
    prepared = prepare(job)
    bare = [job.method.encode(replace(record, rationale=None), prepared.tokens) for record in prepared.splits.eval]
    found = evaluate(job.model.load(), bare, job.method.terms, pad_id=0, batch_size=8).metrics()
    assert "eval/rationale_loss" not in found
    assert found["eval/loss"] == pytest.approx(0.25 * found["eval/label_loss"])


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_every_alpha_reports_the_same_metrics(alpha, base, tmp_path):
    job = job_of(base, tmp_path, f"method.alpha={alpha}")
    few = prepare(job).examples.eval
    found = evaluate(job.model.load(), few, job.method.terms, pad_id=0, batch_size=8).metrics()
    assert found.keys() == {"eval/loss", "eval/label_loss", "eval/rationale_loss", "eval/accuracy"}
    expected = alpha * found["eval/label_loss"] + (1 - alpha) * found["eval/rationale_loss"]
    assert found["eval/loss"] == pytest.approx(expected)


def test_losses_of_tasks_are_better_when_lower(base, tmp_path):
    job = job_of(base, tmp_path)
    unlabelled = job.method.encode(Rationale("a", None, "b"), tokens_of(job))
    assert metric_directions(job.method, unlabelled, is_encoder_decoder=False) == {
        "eval/loss": Better.lower,
        "eval/label_loss": Better.lower,
        "eval/rationale_loss": Better.lower,
        "eval/accuracy": Better.higher,
    }


def test_a_metric_that_the_eval_records_have_no_weight_in_is_refused(base, tmp_path):
    job = job_of(base, tmp_path, "method.metric=eval/rationale_loss")
    assert prepare(job)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"input_text": "red cat", "output_text": "cat"}\n' * 3)
    with pytest.raises(InputError, match=r"method\.metric=eval/rationale_loss: no eval example has it; choose another"):
        prepare(job_of(base, tmp_path, "method.metric=eval/rationale_loss", f"data.eval={bare}"))


def test_rationales_that_were_all_carved_are_said_to_be(base, tmp_path):
    """Which record is carved depends on its text, so each of these has the only rationale once."""
    file, refusals = tmp_path / "train.jsonl", []
    rows = [{"input_text": f"red cat {'a ' * i}", "output_text": "cat"} for i in range(10)]
    for chosen in range(len(rows)):
        texts = [json.dumps({**row, "rationale": "so"} if i == chosen else row) for i, row in enumerate(rows)]
        file.write_text("\n".join(texts))
        given = [f"model.name_or_path={base}", "method=dss", f"data.train={file}", f"home={tmp_path}"]
        try:
            prepare(config.load("check", given))
        except InputError as error:
            refusals.append(str(error))
    assert set(refusals) == {
        "no record of data.train has a rationale, which method.rationale_target names: there is nothing to learn for "
        "it (1 record has one, but was carved into the eval set: name data.eval); have a teacher write them "
        "(jobs/annotate.py, or teacher=…), or set method.alpha=1 to learn labels alone"
    }
