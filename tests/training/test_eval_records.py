"""What a trial's metric is of each eval record at its best report, in its folder: packed or alone, the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import Silent, precomputed, spec_of, write_base, write_records

from raytune_llm.evaluation.metric_file import FILE, read_metric
from raytune_llm.jobs.config import load
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit

METRICS = ("eval/loss", "eval/rougeL")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", "llama"), *write_records(folder)


def specs(world, home, metric, *, keeps_records):
    """A trial that improves, and one whose rate is far too high."""
    base, train, evaluation = world
    job = load(
        "train",
        [
            *(f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}", "run=r"),
            *("tuning.eval_every=4", "tuning.batch_size=4", "tuning.steps=12", "tuning.adapter_size=4", "name=t"),
            *("tuning.early_stopping.patience=null", "evaluation.max_new_tokens=4", f"method.metric={metric}"),
        ],
    )
    for rate in (1e-2, 1.0):
        spec = spec_of(job.with_values({"model.learning_rate": rate}), id=f"t{rate}")
        yield job, replace(spec, config=replace(spec.config, keeps_records=keeps_records))


def best_of_pack(found):
    """The best value of each trial's metric."""
    job, first = found[0]
    pack = PackedTrials(
        first.config, precomputed(job).examples, wanted=2, max_lora_rank=4, device="cpu", log=lambda _: None
    )
    best = {}
    for _, spec in found:
        pack.join(spec, Silent())
    while pack.trials:
        for pending in pack.advance():
            pending.store()
            best[pending.trial_id] = pending.history.best
            if pending.ended is not None:
                pack.leave(pending.trial_id)
    pack.close()
    return [best[spec.trial.id].metrics[first.config.method.metric] for _, spec in found]


def best_alone(found, scratch):
    return [alone(job, spec, scratch / spec.trial.id) for job, spec in found]


def alone(job, spec, folder):
    reports = []
    folder.mkdir()
    fit(
        spec,
        precomputed(job).examples,
        WorkerContext(folder, rank=0, world_size=1, use_gpu=False),
        report=lambda metrics, checkpoint: reports.append(metrics),
        run=Silent(),
        progress=lambda step, metrics: None,
        resume=None,
    )
    best = {metrics["step"]: metrics for metrics in reports}[reports[-1]["best_step"]]
    return best[spec.config.method.metric]


@pytest.mark.parametrize("metric", METRICS)
def test_the_records_are_those_of_the_best_report(world, tmp_path, metric):
    packed = list(specs(world, tmp_path / "packed", metric, keeps_records=True))
    solo = list(specs(world, tmp_path / "alone", metric, keeps_records=True))
    values = [*best_of_pack(packed), *best_alone(solo, tmp_path)]
    kept = [read_metric(spec.directory) for _, spec in (*packed, *solo)]
    assert [metric.whole() for metric in kept] == pytest.approx(values)
    np.testing.assert_allclose(kept[0].statistics, kept[2].statistics, rtol=1e-3, atol=1e-6)


def test_nothing_is_kept_that_nobody_asked_for(world, tmp_path):
    packed = list(specs(world, tmp_path / "packed", "eval/loss", keeps_records=False))
    best_of_pack(packed)
    best_alone(list(specs(world, tmp_path / "alone", "eval/loss", keeps_records=False)), tmp_path)
    assert not list(Path(tmp_path).rglob(FILE))
    assert list(Path(tmp_path).rglob("history.json"))


def test_a_sweep_that_may_stop_when_unresolvable_keeps_them():
    data = ["model=demo", "data=demo_sarcasm"]
    stops = [
        load("sweep", [*data, f"sweep.stop_when_unresolvable={value}"]).keeps_records for value in ("true", "false")
    ]
    assert stops == [True, False] and not load("train", data).keeps_records
