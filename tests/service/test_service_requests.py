"""/v1/fine_tuning/jobs: values, names and locations in requests, allowed and refused."""

import json
from pathlib import Path

import pytest
from service_world import KEYS, World, create, error, request_of, upload

from raytune_llm.service.records import registry_name
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.stores.card import Card
from raytune_llm.stores.registry import Registry

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "home", data_prefixes=("gs://bucket/tuning/", "/data/shared"))


@pytest.fixture
def file(world):
    return upload(world.client).json()["id"]


NUMBERS = [0, -1, 51, 1.5, True, "3", "", [], {}, "Auto", 10**400]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("place", ["top", "method"])
def test_hyperparameters_are_auto_or_in_range(world, file, value, place):
    values = {"n_epochs": value}
    part = {"hyperparameters": values}
    body = part if place == "top" else {"method": {"type": "supervised", "supervised": part}}
    message = error(
        create(world, file, **body), 400, "invalid_value", "hyperparameters" if place == "top" else "method"
    )
    assert 'n_epochs: must be "auto" or a whole number from 1 to 50' in message


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "0", "101", "-1", "null"])
def test_rates_are_finite(world, file, text):
    body = f'{{"model": "demo", "training_file": "{file}", "hyperparameters": {{"learning_rate_multiplier": {text}}}}}'
    answer = world.client.post(JOBS, content=body, headers={"content-type": "application/json"})
    if text == "null":  # as if it weren't there
        assert request_of(world, answer).hyperparameters["learning_rate_multiplier"] == "auto"
    else:
        assert "a number above 0, at most 100" in error(answer, 400, param="hyperparameters")


WANDB = {"project": "p"}


@pytest.mark.parametrize(
    ("param", "changes", "words"),
    [
        ("model", {"model": None}, "model"),
        ("model", {"model": ""}, "model"),
        ("training_file", {"training_file": 3}, "training_file"),
        ("method", {"method": {}}, "method.type"),
        ("method", {"method": {"type": "grpo"}}, "'supervised', 'dpo', 'rlhf', 'dss' or 'distill'"),
        ("method", {"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, '{"type": "rlhf"}'),
        ("method", {"method": {"type": "dpo", "supervised": {}}}, "supervised must be left out"),
        ("method", {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}}, "beta"),
        ("method", {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.5}}}}, "at most 2"),
        ("method", {"method": {"type": "dpo", "dpo": {"_target_": "os.system"}}}, "unknown parameter"),
        ("suffix", {"suffix": ""}, "letters, digits"),
        ("suffix", {"suffix": "../x"}, "letters, digits"),
        ("suffix", {"suffix": "a b"}, "letters, digits"),
        ("suffix", {"suffix": "x" * 65}, "at most 64"),
        ("suffix", {"suffix": "-x"}, "letters, digits"),
        ("suffix", {"suffix": "x\n"}, "letters, digits"),
        ("suffix", {"suffix": "demo"}, "the name of an offered model"),
        ("seed", {"seed": -1}, "seed"),
        ("seed", {"seed": 2**31}, "seed"),
        ("seed", {"seed": True}, "seed"),
        ("metadata", {"metadata": {str(i): "" for i in range(17)}}, "at most 16 pairs"),
        ("metadata", {"metadata": {"x" * 65: ""}}, "1 to 64"),
        ("metadata", {"metadata": {"x": "y" * 513}}, "at most 512"),
        ("metadata", {"metadata": {"x": 1}}, "metadata.x"),
        ("integrations", {"integrations": [{"type": "mlflow"}]}, "'wandb'"),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": {}}]}, "wandb.project"),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": {"project": "a,b=c"}}]}, "wandb.project"),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": {**WANDB, "tags": ["$(x)"]}}]}, "tags"),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": {**WANDB, "name": "${x}"}}]}, "wandb.name"),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": WANDB}] * 2}, "at most 1"),
        ("data.train", {"data.train": "/etc/passwd"}, "unknown parameter"),
        ("_target_", {"_target_": "os.system"}, "unknown parameter"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_name(world, file, param, changes, words):
    assert words in error(create(world, file, **changes), 400, param=param)
    assert world.controller.jobs("local") == []


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "gs://bucket/tuning/../secret.jsonl",
        "gs://bucket/tuning//x",
        "gs://bucket/tuning/",
        "gs://bucket/tuning",
        "gs://bucket/tuningx/a.jsonl",
        "gs://bucket/tuning/*.jsonl",
        "gs://bucket/tuning/a,b",
        "gs://bucket/tuning/a b",
        "gs://bucket/tuning/${x}",
        "gs://bucket/tuning/a\n",
        "/data/shared/../../etc/passwd",
        "/data/shared2/x.jsonl",
        "hf:org/name",
        "s3://x/gs://bucket/tuning/a",
    ],
)
def test_only_allowed_locations_are_read(world, file, uri):
    for name in ("training_file", "validation_file"):
        message = error(create(world, file, **{name: uri}), 400, "invalid_value", name)
        assert "locations may begin with gs://bucket/tuning/, /data/shared" in message


def test_locations_below_a_prefix(world, file):
    answer = create(world, file, training_file="/data/shared/a/b.jsonl")
    assert request_of(world, answer).training.location == answer.json()["training_file"] == "/data/shared/a/b.jsonl"
    assert answer.json()["estimate"] is None


def test_files_that_are_not_there_or_no_training_files(world, file):
    error(create(world, "file-" + "0" * 24), 404, "not_found", "training_file")
    error(create(world, file, validation_file="x"), 404, "not_found", "validation_file")
    stored = world.backend.store.file(file)
    result = type(stored)(**{**vars(stored), "purpose": "fine-tune-results", "id": "file-" + "1" * 24})
    world.backend.store._storage.write(f"service/files/{result.id}/file.json", json.dumps(vars(result)).encode())
    assert "allowed: fine-tune" in error(create(world, result.id), 400, "invalid_value", "training_file")


def publish(world, name, base, kind="adapter"):
    """A version of a base; its reference."""
    folder = Path(f"{world.backend.store.home}-{name}")
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    card = Card(
        kind=kind,
        base=base.name_or_path,
        base_revision="0",
        base_loading=base.loading(),
        method="sft",
        metrics={},
        intervals={},
        config={},
        data={},
        seed=0,
        step=1,
        probes=[],
        code_version="0",
    )
    return Registry(f"{world.backend.store.home}/registry").publish(name, folder, card).reference


def test_a_version_of_ones_own_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("raytune_llm.stores.registry.check_folder", lambda folder: None)
    world = World(tmp_path / "home", keys=KEYS)
    ada, bob = map(world.client_of, KEYS)
    owner = key_hash(KEYS[0])[:16]
    base = world.backend.bases["demo"]
    name = registry_name(owner, "wit", "demo")
    assert publish(world, name, base) == f"{name}@1"
    other = type(base)(**{**vars(base), "name_or_path": "/another/base"})
    publish(world, registry_name(owner, "other", "demo"), other)
    publish(world, registry_name(owner, "whole", "demo"), base, kind="model")
    body = {"training_file": upload(ada).json()["id"]}
    for model in (f"{name}@1", f"{name}@v1", name):
        job = ada.post(JOBS, json={**body, "model": model}).json()
        request = world.controller.job(job["id"], owner).request
        assert (job["model"], request.base, request.init_adapter) == (model, "demo", f"{name}@1")
        assert request.name == registry_name(owner, None, "demo")
    for size, status in ((8, 400), ("auto", 200)):
        answer = ada.post(JOBS, json={**body, "model": name, "hyperparameters": {"adapter_size": size}})
        assert answer.status_code == status, answer.text
    for model in (f"{name}@2", f"{name}@champion", "gpt-4o-mini", "a/b", "../x", "é", f"{name}@@"):
        message = error(ada.post(JOBS, json={**body, "model": model}), 404, "model_not_found", "model")
        assert str(tmp_path) not in message and "whole" not in message
    theirs = {"training_file": upload(bob).json()["id"]}
    foreign = error(bob.post(JOBS, json={**theirs, "model": f"{name}@1"}), 404, "model_not_found", "model")
    unknown = error(bob.post(JOBS, json={**theirs, "model": "xit-00000000@1"}), 404, "model_not_found", "model")
    assert foreign.replace(f"{name}@1", "") == unknown.replace("xit-00000000@1", "")
    for refused in ("other", "whole"):
        model = registry_name(owner, refused, "demo")
        assert "only adapters of demo" in error(ada.post(JOBS, json={**body, "model": model}), 400, param="model")
    distill = {"type": "distill", "distill": {"hyperparameters": {"teacher": name, "n_epochs": 1}}}
    job = ada.post(JOBS, json={**body, "model": "demo", "method": distill}).json()
    assert job["method"]["distill"]["hyperparameters"] == {
        "n_epochs": 1,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "teacher": f"{name}@1",
    }
    error(bob.post(JOBS, json={**theirs, "model": "demo", "method": distill}), 404, "model_not_found", "method")
