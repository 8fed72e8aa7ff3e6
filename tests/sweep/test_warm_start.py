"""The winners of earlier sweeps of the same task are tried early, as far as the space has them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from raytune_llm.jobs.config import load
from raytune_llm.stores.card import Card, Version
from raytune_llm.stores.components import describe
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.plan import Plan, make_plan
from raytune_llm.sweep.warm_start import WarmPoint, distinct, point_of, text, warm_points, winners

DEMO = ["model=demo", "data=demo_sarcasm", "name=wit", "run=now"]
RATE, SIZE = "tuning.learning_rate_multiplier", "tuning.adapter_size"


@pytest.fixture(scope="module")
def job():
    return load("sweep", DEMO)


def card_of(job, created="2026-01-01T00:00:00Z", root="sweep", values=(), **fields):
    """The card of what a sweep published."""
    config = describe(job.with_values(dict(values)))
    if root == "train":
        del config["sweep"]
    found = {
        "kind": "adapter",
        "base": "demo",
        "base_revision": job.model.facts.revision_hash,
        "base_loading": {},
        "method": "sft",
        "metrics": {},
        "intervals": {},
        "config": config | {"run": "then"},
        "data": {},
        "seed": 0,
        "step": 9,
        "probes": [],
        "code_version": "0",
        "created": created,
    }
    return Card(**found | fields)


def version(job, name="wit", number=1, **fields):
    return Version(name=name, number=number, path="", card=card_of(job, **fields), files={})


def test_winners_are_of_the_same_task_and_of_other_runs(job):
    dpo = load("sweep", ["model=demo", "data=demo_preference", "method=dpo"])
    full = dataclasses.replace(job, adapter=load("sweep", [*DEMO, "adapter=full", "tuning.adapter_size=8"]).adapter)
    scored = job.with_values({"method.metric": "eval/accuracy"})
    own = card_of(job)
    own = dataclasses.replace(own, config=own.config | {"run": "now"})
    versions = [
        version(job, number=1),
        version(job, number=2, base_revision="another"),
        version(dpo, number=3, method="dpo"),
        version(full, number=4),
        version(scored, number=5),
        version(job, number=6, root="train"),
        Version(name="wit", number=7, path="", card=own, files={}),
        version(job, number=8, config={}),
    ]
    assert [found.number for found in winners(versions, job.trial_config())] == [1]


def test_sweeps_of_the_same_name_come_first_and_of_those_the_newest(job):
    found = winners(
        [
            version(job, "old", created="2026-01-01T00:00:00Z"),
            version(job, "wit", created="2026-01-02T00:00:00Z"),
            version(job, "new", created="2026-01-04T00:00:00Z"),
            version(job, "wit", 2, created="2026-01-03T00:00:00Z"),
        ],
        job.trial_config(),
    )
    assert [one.reference for one in found] == ["wit@2", "wit@1", "new@1", "old@1"]


def nested(**tuning):
    return {"tuning": {"adapter_size": 8, "learning_rate_multiplier": 1.0, **tuning}, "adapter": {"dropout": 0.3}}


def test_a_point_is_the_nearest_of_the_space():
    plan = Plan({RATE: Axis(choices=(1.0, 3.0, 0.3)), SIZE: Axis(choices=(1, 4, 16))}, (9,))
    assert point_of(nested(learning_rate_multiplier=2.0, adapter_size=9), plan) == {RATE: 3.0, SIZE: 16}, "by ratio"
    assert point_of(nested(adapter_size=64), plan) == {RATE: 1.0, SIZE: 16}
    ranges = Plan({RATE: Axis(low=0.1, high=0.5), SIZE: Axis(low=2, high=6, distribution="int_uniform")}, (9,))
    assert point_of(nested(), ranges) == {RATE: 0.5, SIZE: 6}
    assert point_of(nested(adapter_size=4, learning_rate_multiplier=0.2), ranges) == {RATE: 0.2, SIZE: 4}


def test_a_point_has_the_keys_whose_conditions_are_met():
    plan = Plan({"adapter.dropout": Axis(choices=(0.0, 0.1), when={SIZE: (8,)}), SIZE: Axis(choices=(1, 8))}, (9,))
    assert point_of(nested(), plan) == {"adapter.dropout": 0.1, SIZE: 8}
    assert point_of(nested(adapter_size=2), plan) == {SIZE: 1}


def test_what_has_no_place_in_the_space_is_left_out():
    plan = Plan({"tuning.schedule": Axis(choices=("linear", "constant")), SIZE: Axis(choices=(8,))}, (9,))
    assert point_of(nested(schedule="linear"), plan) == {"tuning.schedule": "linear", SIZE: 8}
    assert point_of(nested(schedule="cosine"), plan) is None
    assert point_of(nested(), plan) is None, "a key that the earlier sweep didn't have"
    assert point_of(nested(adapter_size=None, schedule="linear"), plan) is None


def test_at_most_three_points_each_once_and_none_that_the_user_asks_for(job):
    plan = Plan({SIZE: Axis(choices=(1, 2, 4, 8, 16))}, (9,), {SIZE: 8}, first=({SIZE: 8},))
    sizes = [8, 16, 16, 1, 2, 4]
    versions = [version(job, number=number, values={SIZE: size}) for number, size in enumerate(sizes)]
    found = distinct(versions, plan)
    assert [(one.point[SIZE], one.version) for one in found] == [(16, "wit@1"), (1, "wit@3"), (2, "wit@4")]
    assert text(found[:2]) == "warm start: adapter_size 16 from wit@1; adapter_size 1 from wit@3"


def publish(job, folder: Path, name, **fields):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    save_file({"lora_A": np.ones(8, np.float32)}, folder / "adapter_model.safetensors")
    return Registry(job.registry_dir).publish(name, folder, card_of(job, **fields))


def test_cards_are_read_from_the_registry_and_damaged_ones_passed_over(job, tmp_path):
    job = dataclasses.replace(job, home=str(tmp_path / "home"))
    config = job.trial_config()
    plan = make_plan(config, job.sweep.axes())
    assert warm_points(config, plan) == []
    publish(job, tmp_path / "a", "other", values={SIZE: 16, RATE: 2.0})
    damaged = publish(job, tmp_path / "b", "broken")
    Path(damaged.path, "card.json").write_text("{")
    assert warm_points(config, plan) == [WarmPoint(point={RATE: 3.0, SIZE: 16}, version="other@1")]
