"""/v1/fine_tuning: what a request may have, what a job looks like, its events and checkpoints."""

import json

import pytest
from service_world import CHAT, KEYS, World, create, error, request_of, upload

from raytune_llm.service.api import events
from raytune_llm.service.records import State

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "home", data_prefixes=("gs://bucket/tuning/", "/data/shared"))


@pytest.fixture
def file(world):
    return upload(world.client).json()["id"]


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
