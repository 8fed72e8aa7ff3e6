"""Bases as an axis: what each base's job is, by which metric they are compared, and on which records."""

import json
from types import SimpleNamespace

import pytest
from worlds import WORDS, preference, rationale, supervised, tokenizer, write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import bases
from raytune_llm.jobs.bases import bases_of, by_shared_metric, jobs_of_bases, plan_of, start_another
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.setup import Started
from raytune_llm.jobs.sweep import run_sweep
from raytune_llm.models.base import DType


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two bases whose tokenizers split words differently."""
    folder = tmp_path_factory.mktemp("bases")
    one, other = write_base(folder / "one", "llama"), write_base(folder / "other", "qwen")
    words = tokenizer()
    content = json.loads(words.backend_tokenizer.to_str())
    content["model"]["merges"] = []  # bytes
    (other / "tokenizer.json").write_text(json.dumps(content))
    return str(one), str(other)


def job_of(folders, tmp_path, *overrides, write=supervised):
    lines = [json.dumps(write([WORDS[i % 6], WORDS[i % 5], WORDS[i % 3]])) for i in range(24)]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    given = [f"sweep.space.model=[{','.join(folders)}]", f"data.train={path}", f"data.eval={path}", f"home={tmp_path}"]
    given += ["sweep.space.tuning.steps=[2,4]", "sweep.space.tuning.adapter_size=[2]", "tuning.batch_size=4"]
    given += ["sweep.space.tuning.learning_rate_multiplier=[1.0]", "name=t", "run=r"]
    return load("sweep", [*given, *overrides])


def started(job):
    clock = SimpleNamespace(lap=lambda part: None)
    return Started(job, prepare(job), use_gpu=False, interactive=False, clock=clock, of_stages={})


def test_the_first_base_is_the_jobs_own_and_each_has_a_job(folders, tmp_path):
    job = job_of(folders, tmp_path)
    found = jobs_of_bases(job)
    assert job.model.name_or_path == folders[0] and list(found) == list(folders)
    assert [own.model.name_or_path for own in found.values()] == list(folders)
    assert {own.name for own in found.values()} == {"t"} and all(
        "model" not in plan_of(own).axes for own in found.values()
    )
    assert plan_of(job).milestones == (2, 4)


def test_a_sweep_of_one_base_has_one_job(folders, tmp_path):
    job = job_of(folders, tmp_path, "sweep.space.model=null", f"model.name_or_path={folders[1]}")
    assert jobs_of_bases(job) == {None: job}


def test_files_of_conf_and_folders_are_bases_and_what_the_command_gives_is_for_all(folders, tmp_path):
    job = job_of(["demo", folders[0]], tmp_path, "model.dtype=float64", "model.attention=eager")
    demo, other = (own.model for own in jobs_of_bases(job).values())
    assert (demo.learning_rate, other.learning_rate, other.name_or_path) == (1e-3, None, folders[0])
    assert {demo.dtype, other.dtype} == {DType.float64} and {demo.attention, other.attention} == {"eager"}
    assert list(bases_of(job.model, ["demo"])) == ["demo"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sweep.space.model=[dem]"],
            r"sweep\.space\.model=dem is no folder, id on the hub or file of conf/model: demo,",
        ),
        (["sweep.space.model=[demo]"], r"is none of sweep\.space\.model=\[demo\]; add it there or leave model= out"),
        (["method=dss", "method.init_adapter=t@1"], r"sweep\.space\.model is not allowed: earlier stages and"),
    ],
)
def test_what_cannot_be_an_axis_of_bases_is_refused(folders, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        jobs_of_bases(job_of(folders, tmp_path, f"model.name_or_path={folders[0]}", *overrides))


def test_a_loss_per_token_becomes_bits_per_byte(folders, tmp_path, capsys):
    found = by_shared_metric(started(job_of(folders, tmp_path)))
    assert (found.job.method.metric, found.prepared.better) == ("eval/bits_per_byte", Better.lower)
    assert found.prepared.answering is None
    assert "method.metric=eval/bits_per_byte, as bases of different tokenizers" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["eval/bits_per_byte", "eval/accuracy"])
def test_metrics_that_bases_share_stay(folders, tmp_path, metric):
    before = started(job_of(folders, tmp_path, f"method.metric={metric}"))
    assert by_shared_metric(before) is before


def test_a_loss_per_pair_is_shared(folders, tmp_path):
    before = started(job_of(folders, tmp_path, "method=reward", write=preference))
    assert by_shared_metric(before) is before and before.job.method.metric.startswith("eval/")


@pytest.mark.parametrize(
    ("overrides", "write", "message"),
    [
        (
            ["method.metric=eval/perplexity"],
            supervised,
            r"eval/perplexity is a mean over tokens.*eval/bits_per_byte, a metric",
        ),
        (["method.metric=eval/token_accuracy"], supervised, "eval/token_accuracy is a mean over tokens"),
        (
            ["method=dss", "method.metric=eval/loss"],
            rationale,
            r"eval/loss is a mean over tokens.*: eval/accuracy, a metric",
        ),
    ],
)
def test_other_means_over_tokens_are_refused(folders, tmp_path, overrides, write, message):
    with pytest.raises(InputError, match=message):
        by_shared_metric(started(job_of(folders, tmp_path, *overrides, write=write)))


def test_bases_that_cannot_be_given_the_same_records_are_refused(folders, tmp_path, monkeypatch):
    """A conversation whose prompt alone fills the context of the base that splits words into bytes."""
    monkeypatch.setattr(bases, "with_frozen_outputs", lambda started: started)
    long = {"messages": [{"role": "user", "content": " ".join(["red"] * 20)}, {"role": "assistant", "content": "red"}]}
    lines = [
        json.dumps(long | {"messages": [{**long["messages"][0], "content": f"say {word}"}, long["messages"][1]]})
        for word in WORDS
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join([*lines, json.dumps(long)]) + "\n")
    job = job_of(folders, tmp_path, f"data.train={path}", f"data.eval={path}", "data.max_tokens=48")
    first, second = jobs_of_bases(job).values()
    with pytest.raises(
        InputError, match=r"can be given 19 eval records and the first base 20, and bases are compared on"
    ):
        start_another(started(first), second, folders[1], 2)
    again = start_another(started(second), second, folders[1], 2)
    assert again.job.model.name_or_path == folders[1]


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_over_bases_publishes_the_best_with_its_own_base(folders, tmp_path):
    """And its recipe is tried on parts of its records."""
    train, evaluation = write_records(tmp_path / "words", count=80)
    given = [f"data.train={train}", f"data.eval={evaluation}", "evaluation.max_examples=8", "sweep.more_labels=true"]
    found = run_sweep(job_of(folders, tmp_path, *given))
    run = tmp_path / "runs/t/r"
    result, card = json.loads((run / "result.json").read_text()), found.version.card
    assert result["values"]["model"] == card.base in folders and card.config["model"]["name_or_path"] == card.base
    assert result["metric"] == card.config["method"]["metric"] == "eval/bits_per_byte"
    rows = (run / "leaderboard.csv").read_text().splitlines()
    assert len(rows) == 5 and all(sum(folder in row for row in rows) == 2 for folder in folders), "two step counts each"
    curve = result["label_curve"]
    assert curve["num_records"] == [10, 20, 40, 80] and curve["predicted_records"] == 160
    assert curve["values"][-1] == pytest.approx(card.metrics["eval/bits_per_byte"])
    trials = [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/trial.json"))]
    parts = [trial["values"] for trial in trials if trial["origin"] == "labels"]
    assert [values["data.subset"] for values in parts] == [0.125, 0.25, 0.5]
    assert all(values["model"] == card.base for values in parts) and len(trials) == 5
