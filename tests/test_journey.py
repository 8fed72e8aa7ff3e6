"""The whole journey on one machine, stage by stage, on real Ray: sweep → leaderboard → registry → PEFT → evaluate →
serve."""

import csv
import json
import socket
from pathlib import Path

import openai
import pytest
import torch
from worlds import write_base, write_records

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.models.base import Base
from raytune_llm.models.loading import load_tuned
from raytune_llm.service.run_files import RunFiles
from raytune_llm.serving.deploy import endpoint as deployment
from raytune_llm.stores.registry import Registry

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def swept(ray_session, tmp_path_factory):
    """A small sweep on the embedded base; its job and what it came to."""
    home = tmp_path_factory.mktemp("home")
    job = load(
        "sweep",
        [
            "model=demo",
            "data=demo_sarcasm",
            f"home={home}",
            "name=wit",
            "run=first",
            "tracking=tensorboard",
            "tuning.eval_every=20",
            "tuning.batch_size=8",
            "sweep.space.tuning.steps=[20,40]",
            "sweep.space.tuning.adapter_size=[1,8]",
            "sweep.space.tuning.learning_rate_multiplier=[1.0]",
            "sweep.scheduler.grace_steps=20",
            "evaluation.max_examples=64",
            "evaluation.bootstrap_draws=200",
        ],
    )
    return job, commands.run_sweep(job)


def test_leaderboard_has_every_point_that_was_reached_best_first(swept):
    job, _ = swept
    rows = list(csv.DictReader(Path(job.run_dir, "leaderboard.csv").read_text().splitlines()))
    losses = [float(row["eval/loss"]) for row in rows]
    assert losses == sorted(losses) and len({row["trial"] for row in rows}) == 2
    assert {row["tuning.steps"] for row in rows} == {"20", "40"}


def test_each_trial_keeps_its_metrics_and_one_checkpoint(swept):
    job, _ = swept
    folders = [folder for folder in Path(job.run_dir, "trials").iterdir() if folder.is_dir()]
    assert len(folders) == 2 + 4, "both configurations are trained again, twice each"
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert {"train/loss", "eval/loss"} <= set().union(*lines)
        assert len(list(folder.glob("checkpoint_*"))) == 1
        assert list(folder.glob("events.out.tfevents*"))


def test_the_winner_is_registered_with_a_card_that_explains_it(swept):
    job, conclusion = swept
    version = Registry(job.registry_dir).show("wit@champion")
    assert version.reference == conclusion.version.reference == "wit@1"
    card = version.card
    assert card.base_revision == job.model.facts.revision_hash and card.parent == "wit/first"
    assert set(card.data) == {"train", "eval", "test"} and card.config["tuning"]["adapter_size"] in (1, 8)
    low, high = card.intervals["test/accuracy"]
    assert low <= card.metrics["test/accuracy"] <= high


def test_the_registered_adapter_loads_in_peft_and_is_what_was_trained(swept):
    job, conclusion = swept
    from peft import PeftModel

    base = Base.from_loading(conclusion.version.card.base_loading)
    tuned = PeftModel.from_pretrained(base.load(), conclusion.version.path).eval()
    again = load_tuned(conclusion.version.path, base)
    ids = torch.tensor([job.model.tokenizer()("Ann: What a day!")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(tuned(ids).logits, again(ids).logits)
        assert not torch.allclose(tuned(ids).logits, base.load().eval()(ids).logits)


def test_evaluate_reports_base_against_tuned(swept, capsys):
    job, _ = swept
    evaluation = load(
        "evaluate", ["adapter=wit@1", "data=demo_sarcasm", f"home={job.home}", "run=now", "evaluation.max_examples=40"]
    )
    assert commands.evaluate(evaluation) == 0
    printed = capsys.readouterr().out
    assert "tuned beats base on eval/loss by" in printed
    assert f"report  {evaluation.run_dir}/report.html" in printed
    assert "evaluate" in json.loads(Path(evaluation.run_dir, "report.json").read_text())["command"]
    page = Path(evaluation.run_dir, "evaluation-test.md").read_text()
    assert "eval/accuracy" in page and "## Samples" in page
    assert json.loads(Path(evaluation.run_dir, "evaluation-test.json").read_text())["num_examples"] == 40


def test_a_report_shows_what_the_run_came_to(swept):
    job, conclusion = swept
    run_dir = Path(job.run_dir)
    content = json.loads((run_dir / "report.json").read_text())
    assert content["version"] == conclusion.version.reference and content["state"] == "champion"
    trials = {trial["id"]: trial for trial in content["trials"]}
    num_rows = len((run_dir / "leaderboard.csv").read_text().splitlines()) - 1
    assert content["winner"] in trials and len(trials) == 6 and len(content["leaderboard"]) == num_rows
    for trial in trials.values():
        spans = trial["spans"]
        assert spans and all(span["is_exact"] and span["device"] == "CPU" for span in spans)
        assert all(span["start"] <= span["end"] for span in spans) and trial["points"][-1]["time"] <= spans[-1]["end"]
    assert content["data"]["rows"] and content["compared"][0]["samples"] and content["costs"]["hours"]
    page = (run_dir / "report.html").read_text()
    assert "wit@1" in page and page.count("data-figure=") >= 4
    assert (run_dir / "report.png").read_bytes().startswith(b"\x89PNG") and not (run_dir / "report-error.txt").exists()


def test_the_service_reads_what_a_run_has_written(swept):
    job, conclusion = swept
    files = RunFiles(job.home, "wit", "first")
    trials = {trial.id: trial for trial in files.trials()}
    assert {trial.values["tuning.adapter_size"] for trial in trials.values()} == {1, 8}
    outcome = files.outcome()
    won = trials[outcome["trial"]]
    assert outcome["version"] == conclusion.version.reference and won.values == outcome["values"]
    assert any(point.step == outcome["step"] and "eval/loss" in point.metrics for point in won.points)
    assert files.leaderboard()[0]["trial"] in {one["name"] for one in outcome["confirmation"]["configurations"]}


def test_old_answers_are_a_bar_for_the_winner(swept, tmp_path, capsys):
    """Of an old model that always gave the first label."""
    job, conclusion = swept
    records = Path(str(load("train", ["model=demo", "data=demo_sarcasm"]).data.test)).read_text().splitlines()[:40]
    old = tmp_path / "old.jsonl"
    pairs = [json.loads(line) for line in records]
    old.write_text(
        "".join(
            json.dumps({"prompt": pair["input_text"], "answer": "sincere", "reference": pair["output_text"]}) + "\n"
            for pair in pairs
        )
    )
    asked = load("import_openai", ["model=demo", f"home={job.home}", "run=bar", f"answers={old}", "adapter=wit@1"])
    assert commands.import_openai(asked) == 0
    printed = capsys.readouterr().out
    assert "the bar: " in printed and "eval/accuracy" in printed and "base" in printed
    content = json.loads(Path(asked.run_dir, "evaluation-answers.json").read_text())
    assert content["systems"] == ["base", "old", "new"] and content["num_examples"] == 40
    same = {sample.prompt: sample.answers["tuned"] for sample in conclusion.result.samples}
    both = [sample for sample in content["samples"] if sample["prompt"] in same]
    assert all(sample["answers"]["new"] == same[sample["prompt"]] for sample in both)


def test_the_endpoint_answers_the_openai_client_with_base_and_winner(swept, capsys):
    job, conclusion = swept
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = load("serve", ["adapter=wit", f"home={job.home}", f"serve.port={port}"])
    endpoint = commands.deploy(serving, ["wit@champion"])
    try:
        assert "parity check passed: wit@1" in capsys.readouterr().out
        client = openai.OpenAI(base_url=endpoint.url, api_key="none")
        names = [model.id for model in client.models.list()]
        assert {"base", "wit@1"} <= set(names) or "wit@1" in names
        sample = conclusion.result.samples[0]
        answers = {
            name: client.completions.create(model=name, prompt=sample.prompt, max_tokens=16, temperature=0)
            .choices[0]
            .text
            for name in names
        }
        assert answers["wit@1"].strip() == sample.answers["tuned"]
        assert len(set(answers.values())) > 1
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="x")
    finally:
        deployment.stop()


def test_resuming_a_finished_run_trains_nothing_again(swept, capsys):
    job, _ = swept
    result = Path(job.run_dir, "result.json")
    written = result.read_bytes()
    assert commands.sweep(job) == 0
    assert capsys.readouterr().out == "already published: wit@1 (run=first of wit has ended; another run= tunes anew)\n"
    assert result.read_bytes() == written


def test_a_run_that_was_killed_after_it_published_publishes_no_second_version(swept, capsys):
    job, _ = swept
    result = Path(job.run_dir, "result.json")
    written = json.loads(result.read_text())
    result.unlink()
    assert commands.sweep(job) == 0
    assert "resuming the interrupted sweep" in capsys.readouterr().out
    assert [version.reference for version in Registry(job.registry_dir).list()] == ["wit@1"]
    again = json.loads(result.read_text())
    assert again.pop("metrics")["eval/loss"] == pytest.approx(written.pop("metrics")["eval/loss"])
    assert again == written


def test_the_result_says_what_the_run_came_to(swept):
    job, conclusion = swept
    result = json.loads(Path(job.run_dir, "result.json").read_text())
    assert result["version"] == "wit@1" and result["promoted"] is True and result["metric"] == "eval/loss"
    assert result["verdicts"] == [verdict.text for verdict in conclusion.verdicts]
    assert Path(job.run_dir, "trials", result["trial"], "metrics.jsonl").is_file()
    assert result["values"]["tuning.adapter_size"] == conclusion.version.card.config["tuning"]["adapter_size"]
    assert result["step"] == conclusion.version.card.step
    metrics = conclusion.version.card.metrics
    assert {name: result["metrics"][name] for name in metrics} == metrics
    assert result["trained_tokens"] > 0


@pytest.mark.parametrize(("shape", "adapter"), [("t5", "lora"), ("qwen", "lora"), ("llama", "full")])
def test_other_shapes_pass_from_training_to_the_registry(shape, adapter, tmp_path):
    base = write_base(tmp_path / shape, shape)
    train, evaluation = write_records(tmp_path)
    job = load(
        "train",
        [
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={tmp_path}",
            f"adapter={adapter}",
            "name=other",
            "tuning.steps=4",
            "tuning.eval_every=2",
            "tuning.adapter_size=2",
            "promote=never",
            "evaluation.max_new_tokens=8",
        ],
    )
    assert commands.train(job) == 0
    version = Registry(job.registry_dir).show("other@1")
    assert version.card.kind == ("adapter" if adapter == "lora" else "model") and version.aliases == ()
    tuned = load_tuned(version.path, Base.from_loading(version.card.base_loading))
    assert any(
        (tensor != 0).any() for name, tensor in tuned.state_dict().items() if "lora_B" in name or adapter == "full"
    )
