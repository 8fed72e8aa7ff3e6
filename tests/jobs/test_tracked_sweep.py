"""A sweep whose driver is killed twice, as W&B and MLflow have it in the end: each trial once, each step once, the best
value in its summary, and one run of the sweep with the leaderboard and the winner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from wandb_files import files, recorded
from worlds import write_base, write_records

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load

pytestmark = pytest.mark.slow  # three Ray sessions

NUM_TRIALS, STEPS, EVERY = 4, 60, 5


def job_of(world, home):
    """Four packed trials, of which the first two train at once."""
    return load(
        "sweep",
        [
            f"model.name_or_path={world}/base",
            f"data.train={world}/data/train.jsonl",
            f"data.eval={world}/data/eval.jsonl",
            f"home={home}",
            "name=tracked",
            "run=one",
            "tuning.batch_size=4",
            f"tuning.eval_every={EVERY}",
            "tuning.early_stopping.patience=null",
            "model.learning_rate=1e-2",
            "evaluation.max_new_tokens=4",
            "sweep.max_concurrent=2",
            "sweep/backend=packed",
            "sweep/scheduler=none",
            f"sweep.space.tuning.steps=[{STEPS}]",
            "sweep.space.tuning.adapter_size=[2,4]",
            "sweep.space.tuning.learning_rate_multiplier=[0.5,1.0]",
            "tracking=[wandb,mlflow]",
            "tracking.wandb.mode=offline",
            "tracking.wandb.sweep=k3x9",
        ],
    )


def num_reports(home):
    """Reports that all trials have logged."""
    found = home.glob("runs/tracked/one/trials/*/metrics.jsonl")
    return sum(text.count("eval/loss") for text in (file.read_text() for file in found))


def driven(world, home, kill_at=None):
    """Run the command; kill its process as soon as trials have reported so often."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(world), str(home)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while kill_at is not None and num_reports(home) < kill_at and process.poll() is None:
        time.sleep(0.02)
    if kill_at is not None:
        process.kill()
    output, _ = process.communicate()
    assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), output
    return output


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    world, home = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("home")
    write_base(world / "base", "llama")
    write_records(world / "data", count=40)
    per_trial = STEPS // EVERY
    driven(world, home, kill_at=per_trial // 2)
    driven(world, home, kill_at=3 * per_trial)
    assert "tracking." not in driven(world, home)
    return home


@pytest.fixture(scope="module")
def reports(home):
    """By trial: eval/loss by step, as metrics.jsonl has it."""
    found = {}
    for file in home.glob("runs/tracked/one/trials/*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent.name] = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert len(found) == NUM_TRIALS and {tuple(one) for one in found.values()} == {
        tuple(range(EVERY, STEPS + 1, EVERY))
    }
    return found


def test_weights_and_biases_has_each_trial_and_each_step_once(home, reports):
    by_name = {}
    for file in files(home):
        run = recorded(file)
        assert run.run.display_name not in by_name
        by_name[run.run.display_name] = run
    sweep = by_name.pop("tracked-one")
    assert set(by_name) == set(reports)
    assert len({run.run.run_id for run in (sweep, *by_name.values())}) == NUM_TRIALS + 1
    for name, run in by_name.items():
        assert (run.run.run_group, run.run.sweep_id, run.run.job_type) == ("tracked-one", "k3x9", "trial")
        assert {"steps", "adapter_size", "learning_rate_multiplier", "batch_size", "seed", "base"} <= set(run.config)
        steps = [line["step"] for line in run.history]
        assert steps == sorted(set(steps))
        losses = {line["step"]: line["eval/loss"] for line in run.history if "eval/loss" in line}
        assert losses == pytest.approx(reports[name])
        best = min(reports[name], key=reports[name].get)
        assert run.summary["eval/loss"] == run.summary["objective"] == pytest.approx(reports[name][best])
        assert (run.summary["best_step"], run.summary["ended"], run.exit_code) == (best, "complete", 0)
    assert sweep.run.job_type == "sweep" and sweep.summary["version"] == "tracked@1"
    (model,) = [artifact for artifact in sweep.artifacts if artifact.type == "model"]
    assert {"winner", "version-1"} <= set(model.aliases)
    assert {"leaderboard.csv", "evaluation-eval.md"} <= set(sweep.files)


def test_mlflow_has_each_trial_and_each_step_once(home, reports):
    uri = f"sqlite:///{home}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("raytune_llm").experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found) == NUM_TRIALS + 1
    sweep = by_name.pop("tracked-one")
    for name, run in by_name.items():
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id and run.info.status == "FINISHED"
        history = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "eval/loss")]
        assert len(history) == len(dict(history)) and dict(history) == pytest.approx(reports[name])
        assert run.data.metrics["best/eval/loss"] == pytest.approx(min(reports[name].values()))
        assert run.data.params["adapter_size"] in ("2", "4") and run.data.params["steps"] == str(STEPS)
    (version,) = client.search_model_versions("name = 'tracked'")
    assert version.tags["raytune_llm.version"] == "tracked@1"
    assert Path(version.source.removeprefix("file://"), "adapter_model.safetensors").is_file()


if __name__ == "__main__":
    commands.run_sweep(job_of(*map(Path, sys.argv[1:])))
