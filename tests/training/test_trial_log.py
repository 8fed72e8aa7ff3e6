"""What trackers get of a trial: its knobs, its best report, whatever was killed."""

import dataclasses
import json
from pathlib import Path

import pytest
from worlds import spec_of

from raytune_llm.jobs.config import load
from raytune_llm.training.config import TrialSpec
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.run_config import base_name, run_config
from raytune_llm.training.tracking.background import BackgroundRun, flush
from raytune_llm.training.tracking.jsonl import read_lines
from raytune_llm.training.trial_log import complete, is_tracked, run_info, start_run, summary_of


class Kept:
    """A tracker and its runs, which keep what they get."""

    def __init__(self):
        self.infos, self.lines, self.summaries, self.ends = [], [], [], []

    def start(self, info):
        self.infos.append(info)
        return BackgroundRun(lambda: self)

    def log(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def summarize(self, summary):
        self.summaries.append(dict(summary))

    def finish(self, summary, failed):
        self.ends.append((dict(summary), failed))


@pytest.fixture(scope="module")
def base_spec():
    return spec_of(load("train", ["model=demo", "data=demo_sarcasm", "name=tuned", "run=one"]), id="t0001")


def spec_in(base_spec: TrialSpec, home: Path, tracker) -> TrialSpec:
    config = dataclasses.replace(base_spec.config, home=str(home), tracking={"kept": tracker})
    return dataclasses.replace(base_spec, config=config)


def test_the_summary_is_the_best_report_with_the_trials_totals():
    reports = [
        Report(step=step, metrics={"eval/loss": loss, "eval/accuracy": loss / 10, "time/seconds": 1.0 * step})
        for step, loss in ((1, 3.0), (2, 2.0), (3, 5.0))
    ]
    found = summary_of(reports, Objective("eval/loss", lower_is_better=True))
    assert found == {
        "eval/loss": 2.0,
        "eval/accuracy": 0.2,
        "time/seconds": 3.0,
        "best_step": 2,
        "last_step": 3,
        "objective": 2.0,
    }
    assert summary_of(reports, Objective("eval/accuracy", lower_is_better=False))["best_step"] == 3
    assert summary_of([], Objective("eval/loss", lower_is_better=True)) == {}


def test_knobs_have_the_keys_that_people_know(base_spec):
    found = run_config(base_spec.config, trial="t0001")
    for key, value in found["tuning"].items():
        if not isinstance(value, dict):
            assert found[key] == value
    expected = {"base": "demo:base", "method": "sft", "adapter": "lora", "data": "sarcasm/train.jsonl", "job": "tuned"}
    assert found | expected == found
    assert found["seed"] == base_spec.config.seed and found["learning_rate"] == base_spec.config.learning_rate
    assert found["early_stopping_patience"] == 3 and found["alpha"] == 16.0
    assert (found["objective"], found["goal"]) == ("eval/loss", "minimize")
    assert found["method_options"]["type"] == "sft" and found["scaling"]["num_workers"] == 1
    json.dumps(found)


def test_options_of_the_same_name_are_told_apart_by_their_group():
    """Also where tuning or the adapter has an option of that name."""
    job = load("train", ["model=demo", "data=demo_chat", "method=distill", "method.teacher=org/name"])
    config = spec_of(load("train", ["model=demo", "data=demo_sarcasm"])).config
    found = run_config(dataclasses.replace(config, method=job.method))
    assert found["alpha"] == config.adapter.alpha
    names = {field.name for field in dataclasses.fields(job.method)} - {"metric", "init_adapter"}
    assert all(name in found or f"method_{name}" in found for name in names)


def test_a_base_is_shown_by_the_end_of_its_folder_or_its_id():
    assert [base_name(name) for name in ("/models/smollm2/", "org/name", "demo:base")] == [
        "smollm2",
        "org/name",
        "demo:base",
    ]


def test_a_trial_is_logged_summed_up_and_noted_as_tracked(base_spec, tmp_path):
    kept = Kept()
    spec = spec_in(base_spec, tmp_path, kept)
    log = start_run(spec, "a-sweep", from_step=0)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 5.0)):
        log.log(step, {"train/loss": 9.0})
        log.log(step, {"eval/loss": loss})
    assert not is_tracked(spec)
    log.finish({"ended": "complete"}, failed=False)
    flush()
    assert is_tracked(spec)
    assert [summary["eval/loss"] for summary in kept.summaries] == [3.0, 2.0, 2.0]
    ((summary, failed),) = kept.ends
    assert (summary["eval/loss"], summary["best_step"], summary["ended"], failed) == (2.0, 2, "complete", False)
    assert (kept.infos[0].name, kept.infos[0].group) == ("t0001", "a-sweep")

    again = start_run(spec, "a-sweep", from_step=2)
    assert not is_tracked(spec), "a trial that continues is not over"
    again.log(3, {"eval/loss": 4.0})
    again.finish({}, failed=False)
    flush()
    assert [line.step for line in kept.infos[1].earlier] == [1, 1, 2, 2]
    assert kept.ends[1][0]["best_step"] == 2, "the best report was before the restart"


def test_a_log_that_was_killed_at_its_end_is_completed_from_the_files(base_spec, tmp_path):
    kept = Kept()
    spec = spec_in(base_spec, tmp_path, kept)
    log = start_run(spec, "a-sweep", from_step=0)
    log.log(1, {"eval/loss": 1.0})
    flush()
    lines = read_lines(spec.directory)
    info = dataclasses.replace(run_info(spec, "a-sweep", from_step=0), from_step=1, earlier=lines)
    complete([kept], info, {"ended": "complete"}, failed=False)
    flush()
    assert is_tracked(spec) and kept.infos[-1].earlier == lines
    assert kept.ends[-1][0]["eval/loss"] == 1.0
