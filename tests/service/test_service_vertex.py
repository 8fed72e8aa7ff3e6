"""Tuning jobs in Vertex AI's words."""

import re

import pytest
from service_world import KEYS, World, upload

from raytune_llm.service.api.vertex import as_suffix

PARENT = "/v1/projects/my-project/locations/us-central1/tuningJobs"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "home", data_prefixes=("gs://bucket/tuning/",))


def body(training, **changes):
    return {"baseModel": "demo", "supervisedTuningSpec": {"trainingDatasetUri": training}, **changes}


def google_error(response, status, name):
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"code", "message", "status"} and (found["code"], found["status"]) == (status, name)
    return found["message"]


def test_a_job_from_creation_to_its_model(world):
    file = upload(world.client).json()["id"]
    spec = {
        "trainingDatasetUri": file,
        "validationDatasetUri": "gs://bucket/tuning/valid.jsonl",
        "hyperParameters": {
            "epochCount": "3",
            "learningRateMultiplier": 2,
            "adapterSize": "ADAPTER_SIZE_FOUR",
        },
        "exportLastCheckpointOnly": True,
    }
    asked = {
        "baseModel": "demo",
        "supervisedTuningSpec": spec,
        "tunedModelDisplayName": "My tuned model!",
        "description": "as an example",
        "labels": {"team": "a"},
    }
    created = world.client.post(PARENT, json=asked)
    assert created.status_code == 200, created.text
    job = created.json()
    assert job["state"] == "JOB_STATE_PENDING" and job["name"].startswith(PARENT.removeprefix("/v1/"))
    assert job["supervisedTuningSpec"] | {"hyperParameters": None} == spec | {"hyperParameters": None}
    assert job["supervisedTuningSpec"]["hyperParameters"]["epochCount"] == 3
    assert (job["labels"], job["description"]) == ({"team": "a"}, "as an example")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", job["createTime"])
    assert not {"startTime", "endTime", "tunedModel", "error", "tuningDataStats"} & set(job)
    id = job["name"].rpartition("/")[2]
    request = world.controller.job(id, "local").request
    assert (request.api, request.method, request.name) == ("vertex", "sft", "My-tuned-model")
    assert request.hyperparameters == {"n_epochs": 3, "learning_rate_multiplier": 2, "adapter_size": 4}
    assert request.validation.location == "gs://bucket/tuning/valid.jsonl"
    shows_its_model(world, id)


def shows_its_model(world, id):
    world.controller.succeed(id)
    job = world.client.get(f"{PARENT}/{id}").json()
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["tunedModel"] == {"model": "My-tuned-model@1", "endpoint": "My-tuned-model@1"}
    assert job["tunedModelDisplayName"] == "My tuned model!"
    assert job["createTime"] <= job["startTime"] <= job["endTime"] == job["updateTime"]
    stats = job["tuningDataStats"]["supervisedTuningDataStats"]
    assert (stats["totalBillableTokenCount"], stats["tuningDatasetExampleCount"]) == ("360", "3")
    message = google_error(world.client.post(f"{PARENT}/{id}:cancel"), 400, "INVALID_ARGUMENT")
    assert "succeeded" in message


def test_hyperparameters_that_are_left_out_are_found_by_a_sweep(world):
    file = upload(world.client).json()["id"]
    auto = {"n_epochs": "auto", "learning_rate_multiplier": "auto", "adapter_size": "auto"}
    for given in ({}, {"hyperParameters": {}}, {"hyperParameters": {"adapterSize": "ADAPTER_SIZE_UNSPECIFIED"}}):
        spec = {"trainingDatasetUri": file, **given}
        name = world.client.post(PARENT, json=body(file, supervisedTuningSpec=spec)).json()["name"]
        assert world.controller.job(name.rpartition("/")[2], "local").request.hyperparameters == auto


def test_both_apis_show_the_same_jobs(world):
    file = upload(world.client).json()["id"]
    ours = world.client.post(
        "/v1/fine_tuning/jobs",
        json={
            "model": "demo",
            "training_file": file,
            "hyperparameters": {"n_epochs": 2, "batch_size": 8, "adapter_size": 16},
            "suffix": "wit",
        },
    ).json()["id"]
    theirs = world.client.post(PARENT, json=body(file)).json()["name"].rpartition("/")[2]
    listed = world.client.get("/v1/fine_tuning/jobs").json()["data"]
    assert [job["id"] for job in listed] == [theirs, ours]
    found = world.client.get(f"{PARENT}/{ours}").json()
    assert found["tunedModelDisplayName"] == "wit"
    assert found["supervisedTuningSpec"] == {
        "trainingDatasetUri": file,
        "hyperParameters": {"epochCount": "2", "adapterSize": "ADAPTER_SIZE_SIXTEEN", "batchSize": "8"},
    }
    assert world.client.post(f"{PARENT}/{ours}:cancel").json() == {}
    assert world.client.get(f"/v1/fine_tuning/jobs/{ours}").json()["status"] == "cancelled"
    world.controller.fail(theirs, "line 3: no messages")
    failed = world.client.get(f"{PARENT}/{theirs}").json()
    assert (failed["state"], failed["error"]) == ("JOB_STATE_FAILED", {"code": 9, "message": "line 3: no messages"})


def test_pages_and_the_other_prefix(world):
    file = upload(world.client).json()["id"]
    names = [world.client.post(PARENT, json=body(file)).json()["name"] for _ in range(5)][::-1]
    seen, token = [], ""
    while True:
        page = world.client.get(PARENT, params={"pageSize": 2, "pageToken": token}).json()
        seen += [job["name"] for job in page["tuningJobs"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert seen == names
    beta = world.client.get(PARENT.replace("/v1/", "/v1beta1/")).json()
    assert [job["name"] for job in beta["tuningJobs"]] == names
    google_error(world.client.get(PARENT, params={"pageToken": "x"}), 400, "INVALID_ARGUMENT")
    google_error(world.client.get(PARENT, params={"filter": "state=1"}), 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preferenceOptimizationSpec": {}}, "preferenceOptimizationSpec is not offered; POST /v1/fine_tuning/jobs"),
        ({"distillationSpec": {}}, "distillationSpec is not offered"),
        ({"serviceAccount": "x"}, "unknown parameter: serviceAccount"),
        ({"supervisedTuningSpec": {}}, "missing required parameter: supervisedTuningSpec.trainingDatasetUri"),
        (
            {"supervisedTuningSpec": {"trainingDatasetUri": "file-x", "tuningTask": 1}},
            "supervisedTuningSpec.tuningTask",
        ),
        ({"labels": {str(i): "" for i in range(65)}}, "at most 64 pairs"),
        ({"baseModel": 3}, "baseModel"),
    ],
)
def test_what_is_not_offered_is_refused_in_googles_shape(world, changes, words):
    file = upload(world.client).json()["id"]
    assert words in google_error(world.client.post(PARENT, json=body(file, **changes)), 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochCount", 0),
        ("epochCount", "x"),
        ("epochCount", "1" * 400),
        ("learningRateMultiplier", -1),
        ("adapterSize", "ADAPTER_SIZE_THREE"),
        ("adapterSize", 4),
        ("learningRate", 0.1),
    ],
)
def test_values_out_of_range_are_refused(world, name, value):
    spec = {"trainingDatasetUri": upload(world.client).json()["id"], "hyperParameters": {name: value}}
    message = google_error(world.client.post(PARENT, json=body("", supervisedTuningSpec=spec)), 400, "INVALID_ARGUMENT")
    assert f"supervisedTuningSpec.hyperParameters.{name}" in message


def test_all_errors_have_googles_shape(tmp_path):
    world = World(tmp_path, keys=KEYS)
    ada = world.client_of(KEYS[0])
    google_error(world.client.get(PARENT), 401, "UNAUTHENTICATED")
    google_error(ada.get(f"{PARENT}/ftjob-1"), 404, "NOT_FOUND")
    google_error(ada.post(f"{PARENT}/ftjob-1:cancel"), 404, "NOT_FOUND")
    google_error(ada.put(PARENT), 405, "UNIMPLEMENTED")
    google_error(ada.get("/v1/projects/a%20b/locations/c/tuningJobs"), 400, "INVALID_ARGUMENT")
    google_error(ada.post(PARENT, json=body("gs://bucket/x")), 400, "INVALID_ARGUMENT")
    google_error(ada.post(PARENT, json=body("file-1")), 404, "NOT_FOUND")
    google_error(ada.post(PARENT, json=body("file-1", baseModel="gemini-2.0")), 404, "NOT_FOUND")
    google_error(ada.post(PARENT, content=b"x" * 1_100_000), 413, "INVALID_ARGUMENT")
    lone = b'{"\\ud800": 1, "baseModel": "demo", "supervisedTuningSpec": {"trainingDatasetUri": "file-1"}}'
    answer = ada.post(PARENT, content=lone, headers={"content-type": "application/json"})
    google_error(answer, 400, "INVALID_ARGUMENT")


def test_display_names_become_names():
    assert as_suffix(None) is None and as_suffix("???") is None
    assert as_suffix("../../etc/passwd") == "etc-passwd"
    assert as_suffix("über alles") == "ber-alles"
    assert as_suffix("x" * 100) == "x" * 64
