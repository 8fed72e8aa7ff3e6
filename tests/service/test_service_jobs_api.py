"""/v1/fine_tuning: what a request may have, what a job looks like, its events and checkpoints."""

import json
from pathlib import Path

import pytest
from service_world import CHAT, KEYS, World, error, upload

from raytune_llm.service.api import events
from raytune_llm.service.records import State, registry_name
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


def create(world, file, **changes):
    return world.client.post(JOBS, json={"model": "demo", "training_file": file, **changes})


def request_of(world, answer):
    assert answer.status_code == 200, answer.text
    return world.controller.job(answer.json()["id"], "local").request


def test_a_job_with_nothing_but_a_file_sweeps_what_openai_calls_auto(world, file):
    answer = create(world, file)
    request, job = request_of(world, answer), answer.json()
    auto = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    assert request.hyperparameters == auto == job["hyperparameters"]
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": auto}}
    assert (request.method, request.base, request.init_adapter, request.name) == ("sft", "demo", None, "ft-demo")
    assert request.training.location == world.backend.store.file(file).location and request.validation is None
    assert (job["status"], job["object"], job["training_file"]) == ("validating_files", "fine_tuning.job", file)
    nothing = ("finished_at", "fine_tuned_model", "error", "trained_tokens", "estimated_finish", "validation_file")
    assert all(job[name] is None for name in nothing)
    assert (job["result_files"], job["integrations"], job["metadata"]) == ([], [], {})
    assert 0 <= job["seed"] < 2**31 and job["seed"] != create(world, file).json()["seed"]
    assert job["estimate"] == {
        "records": 3,
        "epochs": 3.0,
        "tokens": 3 * len(CHAT) // 4 * 3,
        "trials": None,
        "device_hours": None,
        "is_exact": False,
    }


def test_everything_that_a_request_may_have(world, file):
    wandb = {"project": "tuning", "name": "my run", "entity": "team", "tags": ["a", "a: b"]}
    answer = create(
        world,
        file,
        validation_file="gs://bucket/tuning/a/valid.jsonl",
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto", "batch_size": 4.0}}},
        suffix="My-wit_1.0",
        seed=7,
        metadata={"team": "a"},
        integrations=[{"type": "wandb", "wandb": wandb}],
    )
    request, job = request_of(world, answer), answer.json()
    values = {"beta": 0.1, "n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert request.method == "dpo" and request.hyperparameters == values
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": dict(request.hyperparameters)}}
    assert job["hyperparameters"] == {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert (request.name, request.suffix, job["seed"], job["metadata"]) == (
        "My-wit_1.0",
        "My-wit_1.0",
        7,
        {"team": "a"},
    )
    assert request.wandb == wandb and job["integrations"] == [{"type": "wandb", "wandb": wandb}]
    assert request.validation.location == job["validation_file"] == "gs://bucket/tuning/a/valid.jsonl"
    assert json.loads(json.dumps(job)) == job and request == world.controller.job(job["id"], "local").request


def test_the_older_place_of_hyperparameters(world, file):
    answer = create(world, file, hyperparameters={"n_epochs": 2, "learning_rate_multiplier": 0.5, "batch_size": 8})
    assert request_of(world, answer).hyperparameters == {
        "n_epochs": 2,
        "learning_rate_multiplier": 0.5,
        "batch_size": 8,
    }
    both = create(world, file, hyperparameters={"n_epochs": 2}, method={"type": "dpo"})
    assert "dpo.hyperparameters" in error(both, 400, "invalid_value", "method")


@pytest.mark.parametrize(
    ("type", "method"),
    [("supervised", "sft"), ("dpo", "dpo"), ("rlhf", "rlhf"), ("dss", "dss"), ("distill", "distill")],
)
def test_methods_by_one_shape(world, file, type, method):
    given = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.5, "adapter_size": 8}
    answer = create(world, file, method={"type": type, type: {"hyperparameters": given}})
    assert (request_of(world, answer).method, request_of(world, answer).hyperparameters) == (method, given)
    assert request_of(world, create(world, file, method={"type": type})).hyperparameters["n_epochs"] == "auto"


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


def test_a_job_that_was_proven_and_one_that_was_not(world, file):
    proven, other = (create(world, file, suffix=name).json()["id"] for name in ("a", "b"))
    world.controller.succeed(proven)
    world.controller.succeed(other, is_named=False)
    job = world.client.get(f"{JOBS}/{proven}").json()
    assert (job["status"], job["fine_tuned_model"], job["trained_tokens"]) == ("succeeded", "a@1", 360)
    assert job["finished_at"] >= job["created_at"] and job["verdict"] == "better than the base"
    assert job["command"] == "raytune-llm sweep home=/x 'name=a b'" and job["device_hours"] == 0.5
    assert job["estimate"]["is_exact"] is True and job["estimate"]["device_hours"] == 0.5
    job = world.client.get(f"{JOBS}/{other}").json()
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", None) and "no model is named" in job["verdict"]
    [checkpoint] = world.client.get(f"{JOBS}/{other}/checkpoints").json()["data"]
    assert checkpoint["id"] == other.replace("ftjob", "ftckpt") and checkpoint["step_number"] == 7
    assert checkpoint["fine_tuned_model_checkpoint"] == "b@1" and checkpoint["fine_tuning_job_id"] == other
    assert checkpoint["metrics"] == {
        "step": 7,
        "valid_loss": 0.5,
        "full_valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.75,
        "full_valid_mean_token_accuracy": 0.75,
        "train_loss": None,
    }
    unfinished = create(world, file).json()["id"]
    assert world.client.get(f"{JOBS}/{unfinished}/checkpoints").json()["data"] == []


def test_a_job_that_failed_or_waits(world, file):
    failed, queued = (create(world, file).json()["id"] for _ in range(2))
    world.controller.fail(failed, "train.jsonl, line 3: no messages")
    job = world.client.get(f"{JOBS}/{failed}").json()
    assert job["error"] == {
        "code": "invalid_training_file",
        "message": "train.jsonl, line 3: no messages",
        "param": "training_file",
    }
    world.controller.move(queued, State.queued, note="waits for a GPU")
    job = world.client.get(f"{JOBS}/{queued}").json()
    assert (job["queue_position"], job["note"], job["status"]) == (1, "waits for a GPU", "queued")


def test_jobs_are_cancelled_paused_and_resumed(world, file):
    id = create(world, file).json()["id"]
    post = world.client.post
    assert post(f"{JOBS}/{id}/pause").json()["status"] == "paused"
    error(post(f"{JOBS}/{id}/pause"), 400)
    assert post(f"{JOBS}/{id}/resume").json()["status"] == "queued"
    error(post(f"{JOBS}/{id}/resume"), 400)
    assert post(f"{JOBS}/{id}/cancel").json()["status"] == "cancelled"
    error(post(f"{JOBS}/{id}/cancel"), 400)
    for action in ("cancel", "pause", "resume"):
        error(post(f"{JOBS}/ftjob-{'0' * 24}/{action}"), 404, "not_found", "job_id")


def test_pages_of_jobs_and_their_metadata(world, file):
    ids = [create(world, file, metadata={"team": "a" if i % 2 else "b", "n": str(i)}).json()["id"] for i in range(5)]
    bare = create(world, file).json()["id"]

    def listed(**params):
        page = world.client.get(JOBS, params=params).json()
        return [job["id"] for job in page["data"]], page["has_more"]

    assert listed() == ([bare, *ids[::-1]], False)
    assert listed(limit=2) == ([bare, ids[4]], True)
    assert listed(after=ids[4], limit=2) == ([ids[3], ids[2]], True)
    assert listed(**{"metadata[team]": "a"}) == ([ids[3], ids[1]], False)
    assert listed(**{"metadata[team]": "a", "metadata[n]": "1"}) == ([ids[1]], False)
    assert listed(**{"metadata[team]": "c"}) == ([], False)
    assert listed(metadata="null") == ([bare], False)
    error(world.client.get(JOBS, params={"metadata": "x"}), 400, param="metadata")
    error(world.client.get(JOBS, params={"metadata": "null", "metadata[x]": "y"}), 400, param="metadata")
    for limit in (0, 1001, "x"):
        error(world.client.get(JOBS, params={"limit": limit}), 400, param="limit")
    error(world.client.get(JOBS, params={"after": "ftjob-1"}), 400, param="after")


def streamed(world, id, **params):
    answer = world.client.get(f"{JOBS}/{id}/events", params={"stream": "true", **params})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_events_in_pages_and_streamed(world, file):
    id = create(world, file).json()["id"]
    world.controller.succeed(id)
    every = world.client.get(f"{JOBS}/{id}/events").json()
    numbers = [event["id"].rpartition("-")[2] for event in every["data"]]
    assert numbers == ["4", "3", "2", "1", "0"] and every["has_more"] is False
    first = world.client.get(f"{JOBS}/{id}/events", params={"limit": 2}).json()
    rest = world.client.get(f"{JOBS}/{id}/events", params={"after": first["last_id"]}).json()
    assert first["data"] + rest["data"] == every["data"] and first["has_more"] is True
    metrics = every["data"][1]
    assert (metrics["type"], metrics["data"]) == ("metrics", {"step": 1, "train_loss": None})
    assert streamed(world, id) == every["data"][::-1]
    assert streamed(world, id, after=metrics["id"]) == every["data"][:1]
    error(world.client.get(f"{JOBS}/{id}/events", params={"after": "x", "stream": "true"}), 400, param="after")
    error(world.client.get(f"{JOBS}/ftjob-{'0' * 24}/events", params={"stream": "true"}), 404)


def test_a_key_has_so_many_streams_at_a_time(world, file, monkeypatch):
    id = create(world, file).json()["id"]
    world.controller.succeed(id)
    assert len(streamed(world, id)) == 5 and not +world.backend.streams
    monkeypatch.setattr(events, "MAX_STREAMS", 0)
    error(world.client.get(f"{JOBS}/{id}/events", params={"stream": "true"}), 429, "too_many_streams")


def test_usage_and_quota(tmp_path):
    world = World(tmp_path, keys=KEYS, device_hours_per_key=2.0)
    ada, bob = map(world.client_of, KEYS)
    file = upload(ada).json()["id"]
    done, running, _ = (ada.post(JOBS, json={"model": "demo", "training_file": file}).json()["id"] for _ in range(3))
    world.controller.succeed(done)
    world.controller.move(running, State.running)
    assert ada.get("/v1/fine_tuning/usage").json() == {
        "device_hours": 0.5,
        "limit": 2.0,
        "running": 1,
        "queued": 1,
        "stored_bytes": 3 * len(CHAT),
        "stored_bytes_limit": 500_000,
    }
    assert bob.get("/v1/fine_tuning/usage").json()["device_hours"] == 0
    world.controller.max_unfinished = 2
    error(ada.post(JOBS, json={"model": "demo", "training_file": file}), 429, "too_many_jobs")


def test_bodies_and_headers_are_bounded(world):
    error(world.client.post(JOBS, content=b"x" * 1_000_001), 413, "request_too_large")
    error(world.client.get(JOBS, headers={"x": "y" * 40_000}), 431, "headers_too_large")
    error(world.client.post("/v1/files", headers={"x": "y" * 40_000}), 431, "headers_too_large")
    error(world.client.post(JOBS, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json")


def test_keys_are_needed_for_all_but_health(tmp_path):
    world = World(tmp_path, keys=KEYS)
    assert world.client.get("/healthz").json() == {"status": "ok"}
    for path in (JOBS, "/openapi.json", "/v1/files", "/nothing"):
        error(world.client.get(path), 401, "invalid_api_key")
    error(world.client_of("key-of-eve").post("/v1/files", content=b"x" * 300_000), 401, "invalid_api_key")
    assert world.client_of(KEYS[1]).get("/openapi.json").status_code == 200
