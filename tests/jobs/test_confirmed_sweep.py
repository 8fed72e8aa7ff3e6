"""On which records the first configurations are compared again, which of them wins, and a sweep that does it all."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds import WORDS, supervised, write_base

from raytune_llm.errors import InputError
from raytune_llm.evaluation.first_place import Ranking, Standing
from raytune_llm.evaluation.metrics import mean
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.bases import plan_of
from raytune_llm.jobs.config import load
from raytune_llm.jobs.confirm import Confirmation, announced, as_good, cost_of
from raytune_llm.jobs.held_out import eval_halves, held_out, seen_by_trials
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.run_result import RESULT
from raytune_llm.jobs.sweep import run_sweep
from raytune_llm.sweep.confirm import Contender
from raytune_llm.sweep.leaderboard import Row
from raytune_llm.sweep.trial_store import Origin, TrialStore
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.objective import Report


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def job_of(base, folder, *overrides, count=60, test=None):
    paths = {}
    for name, size in (("train", 40), ("eval", count), ("test", test)):
        if size is not None:
            lines = [json.dumps(supervised([WORDS[i % 6], WORDS[i % 5], WORDS[i % 7]])) for i in range(size)]
            paths[name] = folder / f"{name}.jsonl"
            paths[name].write_text("\n".join(lines) + "\n")
    given = [f"data.{name}={path}" for name, path in paths.items()]
    given += [f"model.name_or_path={base}", f"home={folder}", "name=t", "run=r", "tuning.batch_size=4"]
    given += ["sweep.space.tuning.steps=[2,4]", "sweep.space.tuning.adapter_size=[1,2]", "tuning.eval_every=2"]
    given += ["sweep.space.tuning.learning_rate_multiplier=[1.0]", "evaluation.bootstrap_draws=50"]
    return load("sweep", [*given, *overrides])


def test_half_of_the_eval_records_stop_no_trial(base, tmp_path):
    job = job_of(base, tmp_path)
    prepared = prepare(job)
    seen, held = eval_halves(job, prepared.encoded)
    assert sorted([*seen, *held]) == list(range(60)) and len(seen) == len(held) == 30
    split, records = held_out(job, prepared.encoded)
    assert split == "held-out eval"
    assert list(records.records) == [prepared.encoded.eval.records[place] for place in held]
    assert len(prepared.examples.eval) == 30 and len(prepared.encoded.eval.records) == 60
    assert list(seen_by_trials(job, prepared.encoded).eval.records) == [
        prepared.encoded.eval.records[place] for place in seen
    ]
    assert "at most 4 × 4 steps, and compared on 30 records of held-out eval" in announced(job, prepared, plan_of(job))


@pytest.mark.parametrize(
    ("overrides", "test", "split"),
    [((), 20, "test"), (("sweep.confirm.records=eval",), 20, "held-out eval"), (("sweep.confirm.top=0",), 20, None)],
)
def test_test_records_come_first(base, tmp_path, overrides, test, split):
    job = job_of(base, tmp_path, *overrides, test=test)
    prepared = prepare(job)
    found = held_out(job, prepared.encoded)
    assert (None if found is None else found[0]) == split
    assert len(prepared.examples.eval) == (30 if split == "held-out eval" else 60)


def test_few_eval_records_are_not_halved_and_it_is_said_so(base, tmp_path):
    job = job_of(base, tmp_path, count=39)
    prepared = prepare(job)
    assert held_out(job, prepared.encoded) is None and len(prepared.examples.eval) == 39
    assert announced(job, prepared, plan_of(job)).startswith("the winner will not be confirmed: 39 eval records")


def test_test_records_that_there_are_not_are_refused(base, tmp_path):
    job = job_of(base, tmp_path, "sweep.confirm.records=test")
    with pytest.raises(InputError, match=r"sweep\.confirm\.records=test is not allowed; allowed: auto or eval"):
        prepare(job)


def contender(trial, **values):
    named = {key.replace("__", "."): value for key, value in values.items()}
    return Contender(Row(trial, named, Report(step=2, metrics={"eval/loss": 1.0}), "complete"), ())


def test_of_equal_ones_smaller_adapters_are_cheaper_then_fewer_steps(base, tmp_path):
    job = job_of(base, tmp_path)
    large, long, short = (
        contender("large", tuning__adapter_size=2, tuning__steps=2),
        contender("long", tuning__adapter_size=1, tuning__steps=4),
        contender("short", tuning__adapter_size=1, tuning__steps=2),
    )
    ordered = sorted([large, long, short], key=lambda one: cost_of(job, one, plan_of(job)))
    assert [one.trial for one in ordered] == ["short", "long", "large"]


def test_runs_that_are_worse_on_the_records_are_not_as_good():
    generator = np.random.default_rng(0)
    records = generator.normal(2, 1, 100)
    runs = {
        "first": mean(records, Better.lower),
        "same": mean(records + generator.normal(0.001, 0.1, 100), Better.lower),
        "worse": mean(records + generator.normal(0.1, 0.1, 100), Better.lower),
    }
    assert set(as_good(runs, num_draws=500, seed=0)) == {"first", "same"}


def confirmation(*standings, configuration):
    winner = Outcome(
        trial=Trial(id="t9", values={}), reports=(), best=None, checkpoint=None, seconds=1.0, ended="complete"
    )
    found = tuple(contender(one.name, tuning__adapter_size=1) for one in standings)
    return Confirmation("eval/loss", "test", found, Ranking(standings, 50), configuration, winner)


def test_the_verdict_says_how_sure_it_is():
    clear = confirmation(
        Standing("a", 1.0, (0.9, 1.1), 0.99, 1.0), Standing("b", 2.0, (2.0, 2.0), 0.01, 0.01), configuration="a"
    )
    assert clear.verdict == "not luck: a is first with probability 0.99 (2 fresh seeds each, 50 test records)"
    equal = confirmation(
        Standing("a", 1.0, (0.9, 1.1), 0.7, 1.0), Standing("b", 1.1, (1.1, 1.1), 0.3, 0.3), configuration="b"
    )
    assert equal.verdict.startswith("no significant difference between a and b: a is first with probability 0.70")
    assert equal.verdict.endswith("b is the cheapest of those whose best run is no worse")
    assert "wins" in equal.text().split("\n")[4] and equal.described()["run"] == "t9"


def test_a_sweep_trains_its_first_again_and_a_resumed_one_does_not_once_more(base, tmp_path, ray_session, capsys):
    job = job_of(base, tmp_path, "sweep.confirm.top=2")
    published = run_sweep(job)
    found = json.loads((tmp_path / "runs/t/r" / RESULT).read_text())
    assert "is the winner luck? Training t0001 and t0002 with other seeds" in capsys.readouterr().out.replace(
        "t0002 and t0001", "t0001 and t0002"
    )
    store = TrialStore.read(str(tmp_path / "runs/t/r"))
    again = [record for record in store.records.values() if record.origin is Origin.confirm]
    assert len(store.records) == 6 and len(again) == 4 and set(store.endings) == set(store.records)
    assert len({record.values["seed"] for record in again}) == 4
    status = json.loads((tmp_path / "runs/t/r/control/status.json").read_text())
    assert status["num_ended"] == status["num_trials"] == 6 and status["steps_done"] == status["steps_total"]
    confirmed = found["confirmation"]
    assert confirmed["num_records"] == 30 and confirmed["run"] == found["trial"]
    assert {one["name"] for one in confirmed["configurations"]} == {"t0001", "t0002"}
    assert all(len(one["runs"]) == 2 for one in confirmed["configurations"])
    assert published.version.card.config["seed"] == found["values"].get("seed", 0)
    (tmp_path / "runs/t/r" / RESULT).unlink()
    again = run_sweep(replace(job))
    assert again.version.reference == published.version.reference
    assert len(TrialStore.read(str(tmp_path / "runs/t/r")).records) == 6
