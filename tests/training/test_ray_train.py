"""A trial as a Ray Train job on real Ray: data-parallel workers, killed ones, interrupted drivers, early stopping."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from traps import Trap
from worlds import spec_of, write_base, write_records

from raytune_llm import cluster
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.training.ray_train import TrialSetup, run_trial, train

pytestmark = pytest.mark.slow  # minutes of real clusters, killed processes and submitted jobs


def arguments(world, home, *overrides):
    return [
        f"model.name_or_path={world}/base",
        f"data.train={world}/data/train.jsonl",
        f"data.eval={world}/data/eval.jsonl",
        f"home={home}",
        "name=tried",
        "run=one",
        "tuning.steps=8",
        "tuning.adapter_size=4",
        "tuning.batch_size=4",
        "tuning.eval_every=2",
        "model.learning_rate=1e-2",
        "evaluation.max_new_tokens=4",
        *overrides,
    ]


def setup_of(job):
    """A trial's set-up, as jobs/train.py makes it."""
    return TrialSetup(
        spec=spec_of(job, [job.tuning.steps], id="train"),
        examples=ray.put(prepare(job).examples),
        use_gpu=False,
        group=None,
        interactive=False,
        cpus=1.0,
    )


def trained(world, home, *overrides, **trackers):
    """The outcome of a trial with overrides."""
    return train(setup_of(dataclasses.replace(load("train", arguments(world, home, *overrides)), tracking=trackers)))


def losses(outcome, metric="eval/loss"):
    return {report.step: report.metrics[metric] for report in outcome.reports}


def logged(folder):
    """The eval losses that metrics.jsonl holds, by step; a step that stands there twice fails."""
    found = [(line["step"], line["eval/loss"]) for line in lines_of(folder) if "eval/loss" in line]
    assert len({step for step, _ in found}) == len(found)
    return dict(found)


def lines_of(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base with its train and eval files; answers have 1 word or 8."""
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base", "llama")
    write_records(folder / "data", count=40)
    uneven = [{"input_text": f"cat {i}", "output_text": "one" + " two" * (7 * (i % 3 == 0))} for i in range(16)]
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, uneven)))
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_session, world, tmp_path_factory):
    """A trial of one worker that nothing happens to."""
    return trained(world, tmp_path_factory.mktemp("home"))


def test_a_trial_keeps_every_report_and_its_last_checkpoint(undisturbed):
    folder = Path(undisturbed.checkpoint)
    assert undisturbed.ended == "complete" and list(losses(undisturbed)) == [2, 4, 6, 8]
    assert undisturbed.best.metrics["eval/loss"] == min(losses(undisturbed).values())
    assert logged(folder.parent) == pytest.approx(losses(undisturbed))
    assert {path.name for path in folder.iterdir()} >= {"best", "state", "history.json"}
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_two_workers_reach_the_losses_of_one(undisturbed, world, tmp_path):
    """Same batches, halved, and again by accumulation: the same up to the order of fp32 sums, 1e-4."""
    shared = ["scaling.num_workers=2", "scaling.cpus_per_worker=0.5", "tuning.micro_batch_size=1"]
    two = trained(world, tmp_path, *shared)
    assert losses(two) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert losses(two, "train/loss") == pytest.approx(losses(undisturbed, "train/loss"), rel=1e-4)


def test_a_killed_worker_resumes_from_its_last_report(undisturbed, world, tmp_path):
    """SIGKILL between the second report and the third: what was lost is done again and comes out the same."""
    trap = Trap(str(tmp_path / "sprung"), step=6)
    outcome = trained(world, tmp_path, "scaling.max_failures=1", trap=trap)
    assert trap.sprung and outcome.ended == "complete"
    assert losses(outcome) == pytest.approx(losses(undisturbed), rel=1e-6)
    assert logged(Path(outcome.checkpoint).parent) == pytest.approx(losses(undisturbed), rel=1e-6)


def test_a_worker_lost_too_often_says_how_to_go_on(undisturbed, world, tmp_path):
    """No restart is allowed: one error that names the run, which then resumes."""
    trap = Trap(str(tmp_path / "sprung"), step=6)
    message = r"a worker was lost and scaling\.max_failures=0 .* died unexpectedly .* run=one resumes from its last"
    with pytest.raises(InputError, match=message):
        trained(world, tmp_path, "scaling.max_failures=0", trap=trap)
    outcome = trained(world, tmp_path, "scaling.max_failures=0")
    assert outcome.ended == "complete" and losses(outcome) == pytest.approx(losses(undisturbed), rel=1e-6)


def test_an_interrupted_run_resumes_when_it_is_named(undisturbed, world, tmp_path):
    """The driver is killed with its whole Ray session; the same run in another one resumes."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, __file__, str(world), str(tmp_path)], env=environment)
    folder = tmp_path / "runs" / "tried" / "one" / "trials" / "train"
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "sprung").exists()
    before = [line for line in lines_of(folder) if line["step"] <= 4]
    assert [line["step"] for line in before if "eval/loss" in line] == [2, 4]

    outcome = trained(world, tmp_path)
    assert outcome.ended == "complete" and losses(outcome) == pytest.approx(losses(undisturbed), rel=1e-6)
    assert lines_of(folder)[: len(before)] == before
    assert logged(folder) == pytest.approx(losses(undisturbed), rel=1e-6)


def here(world, home, *overrides):
    """A trial in this process, whose output needs no Ray to come here; the steps that it reported."""
    steps = []
    setup = setup_of(load("train", arguments(world, home, *overrides)))
    run_trial(setup, 0, 1, lambda metrics, folder: steps.append(metrics["step"]), None)
    return steps


def test_a_trial_without_improvement_is_stopped(ray_session, world, tmp_path):
    """Nothing is an improvement of 100 nats: the first evaluation, then as many as patience allows."""
    patience = ["tuning.early_stopping.patience=2", "tuning.early_stopping.min_delta=100"]
    assert here(world, tmp_path, *patience) == [2, 4, 6]


def test_progress_says_step_losses_speed_and_time_left(ray_session, world, tmp_path, capsys):
    assert here(world, tmp_path, "tuning.steps=4") == [2, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert re.fullmatch(
        r"step 2/4  train/loss \d+\.\d{4}  eval/bits_per_byte [\d.]+  eval/loss \d+\.\d{4}  eval/perplexity [\d.]+"
        r"  eval/token_accuracy [\d.]+  [\d.]+ steps/s  \d+ s left",
        lines[0],
    )
    assert lines[1].startswith("step 4/4  ") and "left" not in lines[1] and len(lines) == 2


if __name__ == "__main__":
    cluster.connect()
    trained(*sys.argv[1:], trap=Trap(f"{sys.argv[2]}/sprung", step=6, pid=os.getpid(), seconds=5))
