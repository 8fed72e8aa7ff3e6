"""Tasks of lm-evaluation-harness on the embedded base and an adapter trained on it, and what is refused before."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from harness_world import CHOICE, harness_of, write_tasks
from worlds import trained, write_base

from raytune_llm.data.demo import path as demo_path
from raytune_llm.errors import InputError
from raytune_llm.evaluation.harness import check_task_name, load_tasks, rows_of, run_tasks, table, task_manager
from raytune_llm.jobs.config import load
from raytune_llm.jobs.further import run_on_both
from raytune_llm.models.loading import load_model

LABELS = ["sarcastic", "sincere"]


def questions(count):
    """Of the demo's test records."""
    lines = next(demo_path("data/sarcasm").glob("test*")).read_text().splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [(row["input_text"], LABELS, LABELS.index(row["output_text"])) for row in rows]


@pytest.fixture(scope="module")
def job():
    return load(
        "train", ["model=demo", "data=demo_sarcasm", "tuning.steps=6", "tuning.eval_every=6", "tuning.warmup_steps=0"]
    )


@pytest.fixture(scope="module")
def adapter(job, tmp_path_factory):
    return str(trained(job, tmp_path_factory.mktemp("trial") / "t"))


def load_own(harness):
    return load_tasks(harness, task_manager(harness))


def test_base_and_adapter_on_own_tasks(job, adapter, tmp_path):
    asked = questions(12)
    harness = harness_of("own_choice", "own_text", path=write_tasks(tmp_path, asked))
    rows = run_on_both(job.model, adapter, harness, num_draws=20, seed=0, use_gpu=False)
    assert [(row.task, row.metric, row.num_examples, row.higher_is_better) for row in rows] == [
        ("own_choice", "acc", 12, True),
        ("own_text", "exact_match", 12, True),
        ("own_text", "bleu", None, True),
    ]
    right = [[likeliest(job, location, one) == one[2] for one in asked] for location in (None, adapter)]
    base, tuned = np.array(right, dtype=float)
    choice = rows[0]
    assert (choice.base, choice.tuned) == pytest.approx((base.mean(), tuned.mean()))
    assert choice.difference == pytest.approx(tuned.mean() - base.mean())
    assert choice.stderr == pytest.approx((tuned - base).std(ddof=1) / math.sqrt(12))
    found = table(rows)
    assert found[0] == ["task", "metric", "better", "examples", "base", "tuned", "difference", "stderr"]
    assert found[1][:4] == ["own_choice", "acc", "higher", "12"] and found[3][3] == ""


def likeliest(job, location, question):
    """The choice that the model gives the highest log-probability, computed here."""
    text, choices, _ = question
    model, tokenizer = load_model(job.model, location, use_gpu=False), job.model.tokenizer()
    scores = []
    for choice in choices:
        prompt, whole = (tokenizer(part)["input_ids"] for part in (text, f"{text} {choice}"))
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(logprobs[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))))
    return int(np.argmax(scores))


def test_a_model_does_not_differ_from_itself(job, tmp_path):
    harness = harness_of("own_choice", path=write_tasks(tmp_path, questions(4)), limit=3, num_fewshot=1)
    (row,) = run_on_both(job.model, None, harness, num_draws=5, seed=0, use_gpu=False)
    assert (row.difference, row.stderr, row.num_examples) == (0, 0, 3)


def test_an_encoder_decoder_base(tmp_path):
    folder = write_base(tmp_path / "base", "t5")
    base = load("check", [f"model.name_or_path={folder}", "data=demo_sarcasm"]).model
    harness = harness_of("own_choice", path=write_tasks(tmp_path / "own", [("what", ["cat", "dog"], 0)] * 3))
    (row,) = run_on_both(base, None, harness, num_draws=5, seed=0, use_gpu=False)
    assert row.num_examples == 3 and row.base in (0, 1)


def test_a_group_of_tasks_and_metrics_without_examples():
    def found(acc, bleu):
        results = {"group": {"alias": "g", "acc,none": acc, "acc_stderr,none": 0.3}}
        results["t"] = {"bleu,strict": bleu, "bleu_stderr,strict": "N/A"}
        return {"results": results, "higher_is_better": {"group": {"acc": True}}}

    group, text = rows_of(found(0.25, 10.0), found(0.5, 12.0))
    assert (group.task, group.metric, group.num_examples) == ("group", "acc", None)
    assert group.difference == 0.25 and group.stderr == pytest.approx(0.3 * math.sqrt(2))
    assert (text.metric, text.higher_is_better) == ("bleu,strict", None) and math.isnan(text.stderr)
    assert table([text])[1][-1] == ""


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no task arc_eazy among the 2 .*; nearest: arc_easy \(lm_eval ls tasks"):
        check_task_name("arc_eazy", ["arc_easy", "mmlu"])
    with pytest.raises(InputError, match="no name is near"):
        check_task_name("zzz", ["arc_easy", "mmlu"])


@pytest.mark.slow  # the index of all tasks takes half a minute of a slow core
def test_the_harness_s_own_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write_tasks(tmp_path, [("what", ["cat", "dog"], 0)])
    with pytest.raises(InputError, match=r"no task own_choise .*nearest: own_choice"):
        load_own(harness_of("own_choise", path=path))
    with pytest.raises(InputError, match=r"arc_easy can't be loaded: .*HF_HUB_OFFLINE is set: download them first"):
        load_own(harness_of("own_choice", "arc_easy", path=path))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"needs the package lm_eval; install it with: pip install 'raytune-llm\[harn"):
        task_manager(harness_of("arc_easy"))


def test_data_at_a_relative_path_are_refused(tmp_path, monkeypatch):
    path = write_tasks(tmp_path, [("what", ["cat", "dog"], 0)], data="data.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"own_choice reads data\.jsonl, a relative path, .*make it absolute"):
        load_own(harness_of("own_choice", path=path))


def test_data_that_are_missing_are_refused(tmp_path):
    path = write_tasks(tmp_path, [("what", ["cat", "dog"], 0)], data=f"{tmp_path}/none.jsonl")
    with pytest.raises(InputError, match=r"own_choice can't be loaded: .*none\.jsonl"):
        load_own(harness_of("own_choice", path=path))


def test_a_task_that_runs_a_model_s_code_is_refused(tmp_path):
    path = write_tasks(tmp_path, [("what", ["cat", "dog"], 0)])
    (tmp_path / "unsafe.yaml").write_text(
        CHOICE.replace("own_choice", "own_code").replace("DATA", f"{tmp_path}/data.jsonl") + "unsafe_code: true\n"
    )
    with pytest.raises(InputError, match="own_code runs code that a model wrote"):
        load_own(harness_of("own_code", path=path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limit=0", r"evaluation\.harness\.limit=0 is not allowed; allowed: ≥ 1 or null"),
        ("num_fewshot=-1", "≥ 0 or null"),
        ("batch_size=0", "≥ 1"),
        ("tasks=[a,b,a]", "each once; repeated: a"),
    ],
)
def test_keys_out_of_range_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        load("train", ["model=demo", "data=demo_sarcasm", f"evaluation.harness.{override}"])


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"evaluation\.harness\.include_path=/none is not allowed"):
        task_manager(harness_of("own_choice", path="/none"))


def test_few_shot_prompts_have_solved_examples(job, tmp_path):
    harness = harness_of("own_choice", path=write_tasks(tmp_path, questions(4)), num_fewshot=2)
    found = run_tasks(
        load_model(job.model, None, use_gpu=False),
        job.model.tokenizer(),
        harness,
        task_manager(harness),
        num_draws=5,
        seed=0,
    )
    prompt = found["samples"]["own_choice"][0]["arguments"][0][0]
    assert prompt.count("sarcastic or sincere?") == 3
