"""Trials that are chosen by their answers, from the command to the published winner, on real Ray."""

import csv
import json
import re
from pathlib import Path

import pytest
from worlds import write_base, write_records

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.stores.registry import Registry
from raytune_llm.training.history import read_reports

pytestmark = pytest.mark.usefixtures("ray_session")
METRIC = "eval/accuracy"


@pytest.mark.parametrize("backend", ["packed", "ray_train"])
def test_the_winner_answers_best(backend, tmp_path, capsys):
    job = load(
        "sweep",
        [
            *("model=demo", "data=demo_sarcasm", f"home={tmp_path}", "run=r", "name=wit", f"method.metric={METRIC}"),
            *("evaluation.answers_per_eval=12", "evaluation.max_new_tokens=8", "evaluation.max_examples=40"),
            *("evaluation.bootstrap_draws=20", "tuning.eval_every=10", "tuning.adapter_size=4", "tuning.batch_size=8"),
            *("sweep.space.tuning.steps=[20]", "sweep.space.tuning.adapter_size=null", "sweep/scheduler=asha"),
            *("sweep.space.tuning.learning_rate_multiplier=[0.03,3.0]", f"sweep/backend={backend}"),
        ],
    )
    assert commands.sweep(job) == 0
    printed = capsys.readouterr().out
    table = list(csv.DictReader(Path(job.run_dir, "leaderboard.csv").read_text().splitlines()))
    values = [float(row[METRIC]) for row in table]
    assert values == sorted(values, reverse=True) and all(float(row["time/answer_seconds"]) > 0 for row in table)
    assert f"trial {table[0]['trial']})" in printed
    assert re.search(r"answers +12 records at each evaluation, \d+ % of the trials' time", printed)
    assert re.search(r"comparison +.*tuned.* on eval/accuracy", printed)
    (version,) = Registry(job.registry_dir).list()
    assert version.card.config["method"]["metric"] == METRIC and METRIC in version.card.intervals
    for trial in Path(job.run_dir, "trials").glob("*/"):
        for checkpoint in trial.glob("checkpoint_*"):
            for report in read_reports(str(checkpoint)):
                twelfths = report.metrics[METRIC] * 12
                assert twelfths == pytest.approx(round(twelfths)) and "eval/loss" in report.metrics
    page = json.loads(Path(job.run_dir, "evaluation-eval.json").read_text())
    assert METRIC in page["metrics"]


def test_two_workers_share_the_questions_and_come_to_the_same(tmp_path):
    base, (train, evaluation) = write_base(tmp_path / "base", "llama"), write_records(tmp_path)
    given = [f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={tmp_path}"]
    found = []
    for workers in (1, 2):
        job = load(
            "train",
            [
                *(*given, "method.metric=eval/rougeL", "evaluation.answers_per_eval=7", "evaluation.max_new_tokens=4"),
                *("evaluation.bootstrap_draws=20", "tuning.steps=24", "tuning.eval_every=12", "tuning.batch_size=4"),
                *("model.learning_rate=1e-2", "name=t", f"run=w{workers}", f"scaling.num_workers={workers}"),
            ],
        )
        assert commands.train(job) == 0
        checkpoint = max(Path(job.run_dir, "trials", "train").glob("checkpoint_*/history.json")).parent
        found.append(read_reports(str(checkpoint)))
    for one, both in zip(*found, strict=True):
        for name in ("exact_match", "token_f1", "rougeL", "bleu", "answer_words"):
            assert both.metrics[f"eval/{name}"] == pytest.approx(one.metrics[f"eval/{name}"]), name
