"""method.metric: known before anything is trained, or refused with what these records have."""

import dataclasses
import json

import pytest
from worlds import WORDS, preference, rationale, write_base

from raytune_llm.errors import InputError
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare

LABELS = ["cat", "dog", "bird"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def labelled(count, labels=tuple(LABELS)):
    return [
        {"input_text": f"{WORDS[i % 7]} {WORDS[i % 5]}", "output_text": labels[i % len(labels)]} for i in range(count)
    ]


def texts(count):
    return [{"input_text": f"{WORDS[i % 7]} {i}", "output_text": f"{WORDS[i % 5]} {i}"} for i in range(count)]


def job_of(base, folder, records, *overrides, root="train"):
    path = write(folder / "records.jsonl", records)
    given = [f"model.name_or_path={base}", f"data.train={path}", f"data.eval={path}", f"home={folder}"]
    return load(root, [*given, *overrides])


def message_of(job):
    with pytest.raises(InputError) as error:
        prepare(job)
    return str(error.value)


@pytest.mark.parametrize("metric", ["eval/loss", "eval/token_accuracy", "eval/perplexity"])
def test_a_loss_term_needs_no_answers(metric, base, tmp_path):
    found = prepare(job_of(base, tmp_path, labelled(9), f"method.metric={metric}"))
    assert found.answering is None
    assert found.better is (Better.higher if "accuracy" in metric else Better.lower)


def test_dss_has_an_accuracy_of_its_own(base, tmp_path):
    records = [rationale([*WORDS[i % 5 : i % 5 + 2], label]) for i, label in enumerate(LABELS * 4)]
    found = prepare(job_of(base, tmp_path, records, "method=dss", "method.metric=eval/accuracy"))
    assert (found.better, found.answering) == (Better.higher, None)
    assert prepare(job_of(base, tmp_path, records, "method=dss", "method.metric=eval/f1_macro")).answering is not None


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "f1/dog", "valid_answers"])
def test_labels_are_answered_as_they_will_be_in_the_comparison(metric, base, tmp_path):
    overrides = [f"method.metric=eval/{metric}", "evaluation.answers_per_eval=7", "data.max_tokens=40"]
    found = prepare(job_of(base, tmp_path, labelled(30), *overrides))
    answering = found.answering
    assert found.better is Better.higher and set(answering.labels) == set(LABELS)
    assert len(answering.prompts) == len(answering.references) == 7
    assert answering.max_new_tokens == 20  # half of what a sequence may have
    assert answering.stop_ids == tuple(found.tokens.stop_ids())
    asked = {tuple(found.tokens.prompt(record.prompt, max_new_tokens=20)) for record in found.splits.eval}
    assert set(map(tuple, answering.prompts)) <= asked


def test_texts_have_metrics_of_texts(base, tmp_path):
    for metric in ("exact_match", "token_f1", "rougeL", "bleu"):
        found = prepare(job_of(base, tmp_path, texts(12), f"method.metric=eval/{metric}"))
        assert found.better is Better.higher and found.answering.labels is None


def test_preferences_are_answered_by_what_was_chosen(base, tmp_path):
    records = [preference([WORDS[i % 5], WORDS[i % 4], WORDS[i % 6]]) for i in range(12)]
    found = prepare(job_of(base, tmp_path, records, "method=dpo", "method.metric=eval/token_f1"))
    assert set(found.answering.references) <= {record["chosen"] for record in records}


def test_only_what_comes_after_the_mark_is_the_answer(base, tmp_path):
    records = [
        {**record, "output_text": f"it is {i}. So: {record['output_text']}"} for i, record in enumerate(labelled(12))
    ]
    found = prepare(job_of(base, tmp_path, records, "method.metric=eval/accuracy", "evaluation.answer_after='So:'"))
    assert set(found.answering.labels) == set(LABELS)


def test_the_subset_is_drawn_with_the_jobs_seed_and_is_that_of_every_trial(base, tmp_path):
    def drawn(*overrides):
        given = ["method.metric=eval/accuracy", "evaluation.answers_per_eval=6", *overrides]
        job = job_of(base, tmp_path, labelled(60), *given, root="sweep")
        prepared = prepare(job)
        return job.trial_config(prepared.better, prepared.answering)

    config = drawn("seed=1")
    assert config.answering == drawn("seed=1").answering != drawn("seed=2").answering
    assert config.with_values({"seed": 5, "tuning.adapter_size": 2}).answering == config.answering


def test_fewer_records_than_wanted_are_all_answered(base, tmp_path):
    found = prepare(job_of(base, tmp_path, labelled(12), "method.metric=eval/accuracy"))
    assert len(found.answering.prompts) == 12
    few = prepare(job_of(base, tmp_path, labelled(60), "method.metric=eval/accuracy", "evaluation.max_examples=10"))
    assert len(few.answering.prompts) == 10


@pytest.mark.parametrize("root", ["train", "check"])
def test_an_unknown_metric_is_refused_with_the_nearest_that_these_records_have(root, base, tmp_path):
    labels = message_of(job_of(base, tmp_path, labelled(12), "method.metric=eval/f1_makro", root=root))
    assert labels.startswith(
        "method.metric=eval/f1_makro is not allowed; with this method these records have, nearest fi"
    )
    assert "nearest first: eval/f1_macro, " in labels and "eval/f1/dog" in labels and "eval/loss" in labels
    of_texts = message_of(job_of(base, tmp_path, texts(12), "method.metric=eval/accuracy", root=root))
    assert "eval/token_f1" in of_texts and "eval/f1_macro" not in of_texts


def test_a_metric_without_a_direction_is_refused(base, tmp_path):
    found = message_of(job_of(base, tmp_path, texts(12), "method.metric=eval/answer_words"))
    assert "eval/answer_words" not in found.partition("nearest first")[2]


def test_methods_that_are_not_judged_by_answers_have_none(base, tmp_path):
    records = [preference([WORDS[i % 5], WORDS[i % 4], WORDS[i % 6]]) for i in range(12)]
    for method in ("reward", "rlhf"):
        found = message_of(job_of(base, tmp_path, records, f"method={method}", "method.metric=eval/exact_match"))
        assert "eval/rougeL" not in found and "eval/" in found.partition("nearest first")[2]


def test_a_label_that_no_answered_record_has_is_refused(base, tmp_path):
    records = [*labelled(57, ("cat", "dog")), *[{"input_text": "red", "output_text": "bird"}] * 3]
    overrides = ["method.metric=eval/f1/bird", "evaluation.answers_per_eval=2"]
    found = message_of(job_of(base, tmp_path, records, *overrides))
    assert found.endswith("none of the 2 records that each evaluation answers has this label; raise "
                          "evaluation.answers_per_eval, up to 60")  # fmt: skip


def test_a_test_set_must_have_the_metric_too(base, tmp_path):
    job = job_of(base, tmp_path, labelled(12), "method.metric=eval/accuracy")
    other = write(tmp_path / "other.jsonl", texts(12))
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, test=str(other)))
    assert "the records of data.test have, nearest first: " in message_of(job)


@pytest.mark.parametrize("key", ["answers_per_eval", "max_new_tokens", "batch_size", "max_examples"])
def test_at_least_one_record_is_answered_in_at_least_one_token(base, tmp_path, key):
    with pytest.raises(InputError, match=rf"evaluation\.{key}=0 is not allowed; allowed: ≥ 1"):
        job_of(base, tmp_path, labelled(12), f"evaluation.{key}=0")
