"""From records to a published version, in this process: each record is encoded once, a frozen model runs once over it,
and a comparison of records that are encoded anew comes to the same."""

from collections import Counter
from dataclasses import replace

import pytest
from worlds import write_base, write_records

from raytune_llm import cluster
from raytune_llm.data import files
from raytune_llm.data.records import PlainText, Preference, Rationale, Supervised
from raytune_llm.jobs import setup, summary
from raytune_llm.jobs.clock import Clock
from raytune_llm.jobs.config import load
from raytune_llm.jobs.evaluate import evaluate_version
from raytune_llm.jobs.precompute import precompute_on_cluster
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.publish import PublishResult, publish
from raytune_llm.jobs.setup import Started
from raytune_llm.jobs.stage_jobs import stage_job
from raytune_llm.models import frozen
from raytune_llm.stores.registry import Registry
from raytune_llm.training.config import Outcome, Trial, TrialSpec
from raytune_llm.training.objective import Report
from raytune_llm.training.trial import WorkerContext, fit

NUM_TRAIN, NUM_EVAL, NUM_TEST, MAX_EXAMPLES = 24, 8, 11, 6
EXACT = ["method/rewards=[exact]", "method.max_completion_tokens=4", "method.eval_prompts=2"]
METHODS = {
    "sft": (Supervised, []),
    "sft on texts": (PlainText, []),
    "dpo": (Preference, []),
    "dss": (Rationale, []),
    "reward": (Preference, []),
    "rlhf": (Supervised, EXACT),
    "distill": (Supervised, ["method.teacher_top_k=7"]),
    "distill on texts": (PlainText, ["method.teacher_top_k=7"]),
    "distill_feature": (Supervised, []),
    "distill_relation": (Supervised, []),
}
"""Record kind and overrides, for each way to encode, to precompute and to compare."""
READERS = {"outputs": "dpo", "label_logits": "distill", "label_states": "distill_feature distill_relation"}
"""The forward passes of models/frozen.py, and the methods that need them."""


class Silent:
    def log(self, step, metrics): ...

    def finish(self, summary, failed): ...


@pytest.fixture
def calls(monkeypatch):
    """Counts of encoded records, by method, and of sequences that frozen models ran over, by forward pass; without
    Ray."""
    counts = Counter()

    def watch(name):
        forward = getattr(frozen, name)

        def watched(model, sequences, **options):
            counts[name] += len(sequences)
            return forward(model, sequences, **options)

        monkeypatch.setattr(frozen, name, watched)

    for name in READERS:
        watch(name)
    monkeypatch.setattr(cluster, "as_task", lambda function, *, use_gpu: function)
    monkeypatch.setattr(cluster, "uses_gpu", lambda *_, **__: False)
    return counts


def job_of(method, folder):
    kind, overrides = METHODS[method]
    train, evaluation = write_records(folder / "data", count=NUM_TRAIN, kinds=[kind])
    test, _ = write_records(folder / "test", count=NUM_TEST, kinds=[kind])
    small = {"steps": 2, "eval_every": 2, "batch_size": 4, "adapter_size": 2, "warmup_steps": 0}
    return load(
        "train",
        [
            f"method={method.removesuffix(' on texts')}",
            f"model.name_or_path={write_base(folder / 'base', 'llama')}",
            *(f"data.{name}={file}" for name, file in (("train", train), ("eval", evaluation), ("test", test))),
            f"home={folder}",
            "name=once",
            "model.learning_rate=1e-2",
            f"evaluation.max_examples={MAX_EXAMPLES}",
            "evaluation.bootstrap_draws=20",
            "evaluation.drift=false",  # its frozen base would count
            "evaluation.max_new_tokens=4",
            *(f"tuning.{key}={value}" for key, value in small.items()),
            *overrides,
        ],
    )


def published(job, folder) -> tuple[Outcome, PublishResult]:
    """A train job without Ray."""
    prepared = prepare(job)
    found = precompute_on_cluster(job, prepared.encoded, use_gpu=False)
    prepared = replace(prepared, encoded=found.encoded, examples=found.examples)
    folder.mkdir()
    reports = []
    config = job.trial_config(prepared.better, prepared.answering)
    spec = TrialSpec(config=config, trial=Trial(id="t", values={}), milestones=())
    fit(
        spec,
        prepared.examples,
        WorkerContext(folder, 0, 1, False),
        report=lambda metrics, _: reports.append(metrics),
        run=Silent(),
        progress=lambda *_: None,
        resume=None,
    )
    best = Report(step=2, metrics=reports[-1])
    outcome = Outcome(
        trial=spec.trial,
        reports=(best,),
        best=best,
        checkpoint=str(folder / "checkpoint"),
        seconds=0.0,
        ended="complete",
    )
    return outcome, publish(job, prepared, outcome, parent=None, use_gpu=False)


@pytest.mark.parametrize("method", METHODS)
def test_a_train_job_encodes_and_reads_each_record_once(method, calls, tmp_path, monkeypatch):
    job = job_of(method, tmp_path)
    cls, encode = type(job.method), type(job.method).encode

    def watched(self, record, tokens):
        calls["encode"] += 1
        return encode(self, record, tokens)

    monkeypatch.setattr(cls, "encode", watched)
    _, result = published(job, tmp_path / "trial")
    assert result.split == "test" and result.result.comparison.num_examples == MAX_EXAMPLES
    assert bool(result.result.samples) == (" on texts" not in method), "texts have no prompt to answer"
    assert calls.pop("encode") == NUM_TRAIN + NUM_EVAL + NUM_TEST
    num_sequences = 2 if method == "dpo" else 1
    needed = {name for name, methods in READERS.items() if method.removesuffix(" on texts") in methods.split()}
    num_read = NUM_TRAIN + NUM_EVAL + (0 if needed == {"label_states"} else MAX_EXAMPLES)
    assert calls == {name: num_sequences * num_read for name in needed}

    calls.clear()
    again = load("evaluate", ["adapter=once@1", f"data.test={job.data.test}", f"home={tmp_path}", "run=again"])
    assert "tuned" in evaluate_version(replace(again, evaluation=job.evaluation))
    assert calls.pop("encode") == MAX_EXAMPLES
    assert calls == {name: num_sequences * MAX_EXAMPLES for name in needed - {"label_states"}}


@pytest.mark.parametrize("method", ["dpo", "distill"])
def test_evaluating_the_version_comes_to_what_was_published(method, calls, tmp_path):
    job = job_of(method, tmp_path)
    outcome, result = published(job, tmp_path / "trial")
    started = Started(job, prepare(job), use_gpu=False, interactive=False, clock=Clock(), of_stages={})
    started.clock.lap("training")
    lines = summary.of_training(started, outcome, result).splitlines()
    assert "time        0 s: training 0" in lines
    (verdict,) = result.verdicts
    state = "champion" if result.promoted else "not promoted: not significantly better than base"
    assert f"comparison  {verdict.text} (eval set)" in lines and f"registered  once@1 ({state})" in lines
    again = load("evaluate", ["adapter=once@1", f"data.test={job.data.test}", f"home={tmp_path}", "run=again"])
    text = evaluate_version(replace(again, evaluation=job.evaluation))
    card = Registry(job.registry_dir).resolve("once@1").card
    metric = job.method.metric.replace("eval/", "test/")
    assert f"{card.metrics[metric]:.3f}" in text and result.version.card.metrics == card.metrics
    reports = [tmp_path / "runs" / name / "evaluation-test.json" for name in (f"once/{job.run}", f"{again.name}/again")]
    first, second = (file.read_text() for file in reports)
    assert first == second


def test_a_version_chosen_by_its_labels_is_judged_by_its_loss_where_there_are_none(calls, tmp_path):
    job = job_of("sft", tmp_path)
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"input_text": "red cat", "output_text": "cat"}\n' * 9)
    data = replace(job.data, train=str(labelled), eval=str(labelled), test=None)
    job = replace(job.with_values({"method.metric": "eval/f1_macro"}), data=data)
    _, result = published(job, tmp_path / "trial")
    assert " on eval/f1_macro" in result.verdicts[0].text
    again = load("evaluate", ["adapter=once@1", f"data.test={tmp_path / 'test/train.jsonl'}", f"home={tmp_path}"])
    text = evaluate_version(replace(again, evaluation=job.evaluation))
    assert " on eval/loss" in text.splitlines()[-2]
    assert "(once@1 was chosen by eval/f1_macro, which these records don't have)" in text
    assert "eval/token_f1" in text


def test_records_stay_where_they_are(calls, tmp_path, monkeypatch):
    sent = []

    def as_task(function, *, use_gpu):
        def run(models, encoded, **options):
            sent.extend([encoded.train, encoded.eval, encoded.test])
            return function(models, encoded, **options)

        return run

    monkeypatch.setattr(cluster, "as_task", as_task)
    job = job_of("dpo", tmp_path)
    encoded = prepare(job).encoded
    found = precompute_on_cluster(job, encoded, use_gpu=False).encoded
    assert [len(split.records) for split in sent] == [0, 0, 0] and all(split.examples for split in sent)
    assert (found.train.records, found.eval.records) == (encoded.train.records, encoded.eval.records)
    assert found.test.records == encoded.test.drawn(MAX_EXAMPLES, job.seed).records
    assert found.test.examples[0]["chosen"].reference is not None


@pytest.mark.parametrize("method", ["distill_feature", "distill_relation"])
def test_the_comparison_reads_no_hidden_states_and_no_groups(method, calls, tmp_path):
    job = job_of(method, tmp_path)
    found = precompute_on_cluster(job, prepare(job).encoded, use_gpu=False)
    trained, compared = found.examples.eval[0], found.encoded.eval.examples[0]
    assert trained["completion"].features is not None and compared["completion"].features is None
    assert list(compared) == ["completion"] and len(trained) == job.method.needs.group_size


def test_a_stage_trains_on_what_was_encoded_when_its_job_was_checked(calls, tmp_path, monkeypatch):
    def refused(*_, **options):
        raise AssertionError("read or encoded again")

    monkeypatch.setattr(setup, "while_ray_starts", lambda prepare, *, dashboard: prepare())
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(f'{{"input_text": "question {n}", "output_text": "answer {n}"}}\n' for n in range(20)))
    job = job_of("dpo", tmp_path).with_values({"method.sft_data": str(answers)})
    (stage,) = job.method.needs.stages
    prepared = setup.start(job).of_stages[stage.name]
    monkeypatch.setattr(files, "load", refused)
    monkeypatch.setattr(type(stage.method), "encode", refused)
    assert setup.start(stage_job(job, stage), prepared=prepared).prepared is prepared


def test_texts_among_answers_are_left_out_of_the_comparison(calls, tmp_path, capsys):
    job = job_of("sft", tmp_path)
    mixed = tmp_path / "mixed.jsonl"
    texts = [f'{{"text": "a text of number {i}"}}\n' for i in range(2)]
    answers = [f'{{"input_text": "question {i}", "output_text": "answer"}}\n' for i in range(4)]
    mixed.write_text("".join(texts + answers))
    job = replace(job, data=replace(job.data, eval=str(mixed), test=None))
    _, published_version = published(job, tmp_path / "trial")
    assert published_version.result.comparison.num_examples == 4 and published_version.result.num_unanswered == 2
    line = "2 records without an answer to compare with (plain texts, calls of tools) are left out of the comparison"
    assert line in capsys.readouterr().out
