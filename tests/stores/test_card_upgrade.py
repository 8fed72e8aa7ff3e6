"""Versions published before short names survive: cards written by that code itself, of each kind and method."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_llm.annotation.teachers.base import Teacher
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.jobs.stage_jobs import inherited
from raytune_llm.methods.base import Method
from raytune_llm.methods.samplers.base import Sampler
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.models.base import Base
from raytune_llm.serving.deploy.config import Serve
from raytune_llm.stores.card import card_json, describe, parse_card, table
from raytune_llm.stores.card_upgrade import FORMAT, NAMES, upgraded_config
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.components import build
from raytune_llm.stores.components import describe as described
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep.backends.base import Backend
from raytune_llm.sweep.schedulers.base import Scheduler
from raytune_llm.sweep.search.base import Search
from raytune_llm.sweep.space import Sweep
from raytune_llm.training.tracking.base import Tracker

FIXTURES = Path(__file__).parent / "fixtures"
CARDS = sorted((FIXTURES / "cards_v1").glob("*.json"))
METHODS = {
    "distill_average": "distill_ema",
    "full": "sft",
    "sweep": "sft",
    "rlhf_rules": "rlhf",
    "end_token": "sft",
}
"""Method of the cards that aren't named after theirs."""
KINDS = {"full": "model", "reward": "reward"}
CHOICES = json.loads((FIXTURES / "choices_v1.json").read_text())
DECLARED = {
    "adapter": Adapter,
    "method": Method,
    "method/sampler": Sampler,
    "teacher": Teacher,
    "tracking": dict[str, Tracker],
    "serve": Serve,
    "sweep": Sweep,
    "sweep/backend": Backend,
    "sweep/scheduler": Scheduler,
    "sweep/search": Search,
}


@pytest.fixture(params=CARDS, ids=lambda file: file.stem)
def version(request, tmp_path):
    """A version of the registry whose card is of format 1."""
    folder = tmp_path / "registry" / request.param.stem / "v1"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(request.param.read_text())
    return Registry(str(tmp_path / "registry")).resolve(f"{request.param.stem}@1")


def test_every_card_is_read_in_the_present_format(version):
    card = version.card
    assert card.format == FORMAT
    assert card.method == METHODS.get(version.name, version.name)
    assert card.kind == KINDS.get(version.name, "adapter")
    assert "_target_" not in json.dumps(card.config)


def test_what_evaluation_and_later_stages_read_is_restored(version):
    card = version.card
    method, adapter = build(Method, card.config["method"]), build(Adapter, card.config["adapter"])
    assert name_of(method, Method) == card.method
    assert name_of(adapter, Adapter) == ("full" if card.kind == "model" else "lora")
    base = Base.from_loading(card.base_loading)
    assert base.facts.revision_hash == card.base_revision
    assert replace(base, eos_token=None) == load("check", ["model=demo", "data=demo_sarcasm"]).model
    assert base.eos_token == ("<|end|>" if version.name == "end_token" else None)


def test_the_whole_job_is_restored(version):
    job = build(SweepJob if "sweep" in version.card.config else TrainJob, version.card.config)
    assert described(job) == version.card.config


def test_a_version_is_shown_and_listed(version):
    text = describe(version)
    assert (f"method   {version.card.method}" in text and '"type": "lora"' in text) or version.card.kind == "model"
    assert version.reference in table([version])


def test_a_card_keeps_its_content_when_it_is_written_again(version):
    written = card_json(version.card, version.files)
    assert parse_card(written) == (version.card, version.files)
    assert json.loads(written)["format"] == FORMAT


def test_training_resumes_in_an_adapter_of_format_1(tmp_path):
    folder = tmp_path / "registry" / "sft" / "v1"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text((FIXTURES / "cards_v1" / "sft.json").read_text())
    job = load(
        "train", ["model=demo", "method=dpo", "data=demo_preference", "method.init_adapter=sft", f"home={tmp_path}"]
    )
    resumed = inherited(job)
    assert resumed.method.init_adapter == "sft@1" and resumed.adapter == job.adapter


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_format_1_is_restored(choice):
    declared, values = DECLARED[choice.partition("=")[0]], upgraded_config(CHOICES[choice])
    entries = values.values() if declared == DECLARED["tracking"] else [values]
    declared = Tracker if declared == DECLARED["tracking"] else declared
    for entry in entries:
        assert described(build(declared, entry), declared) == entry


def test_every_name_of_format_1_is_in_the_fixtures():
    text = json.dumps(CHOICES)
    assert [name for name in NAMES if f'.{name}"' not in text] == []


@pytest.mark.parametrize("method", ["sft", "dss"])
def test_keys_that_were_added_since_a_card_was_written_mean_what_was_done_then(version, method):
    content = json.loads(card_json(version.card, version.files))
    kept = described(load("train", [f"method={method}", "model=demo", "data=demo_rationale"]))["method"]
    assert kept.pop("init_adapter") is None
    found, _ = parse_card(json.dumps(content | {"config": content["config"] | {"method": kept}}).encode())
    assert build(Method, found.config["method"]).init_adapter is None


def test_keys_that_became_a_group_or_came_since_format_2_mean_what_was_done_then(version):
    content = json.loads(card_json(version.card, version.files))
    config = content["config"] | {"promote": "never"}
    config["data"] = {key: value for key, value in config["data"].items() if key != "guard"}
    config["evaluation"] = {key: value for key, value in config["evaluation"].items() if not key.startswith("drift")}
    found, _ = parse_card(json.dumps(content | {"config": config}).encode())
    job = build(SweepJob if "sweep" in config else TrainJob, found.config)
    assert (job.promote.when.value, job.promote.max_drift) == ("never", None)
    assert (job.data.guard, job.evaluation.drift) == (None, False)


def test_a_later_format_is_refused(tmp_path):
    folder = tmp_path / "registry" / "sft" / "v1"
    folder.mkdir(parents=True)
    content = json.loads((FIXTURES / "cards_v1" / "sft.json").read_text())
    (folder / "card.json").write_text(json.dumps(content | {"format": 9}))
    with pytest.raises(InputError, match="format=9 is not allowed; allowed: 1 to 2; a later raytune_llm reads it"):
        Registry(str(tmp_path / "registry")).resolve("sft@1")
