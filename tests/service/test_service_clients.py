"""OpenAI's own clients, unchanged, against the service on a real port."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent
from service_world import CHAT, KEYS, World, listening

from raytune_llm.service.records import State


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A world, and its address."""
    world = World(tmp_path_factory.mktemp("service"), keys=KEYS, max_stored_bytes_per_key=5_000_000)
    with listening(world.app) as url:
        yield world, url


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key=KEYS[0], max_retries=0, timeout=60) as found:
        yield found


def events_of(client, id, **params):
    """A stream of a job's events."""
    return client.get(
        f"/fine_tuning/jobs/{id}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        options={"params": {"stream": True, **params}},
    )


def test_the_whole_life_by_the_python_client(served, client, tmp_path):
    world, _ = served
    path = tmp_path / "train.jsonl"
    path.write_bytes(CHAT * 3)
    with path.open("rb") as content:
        file = client.files.create(file=content, purpose="fine-tune")
    assert (file.filename, file.bytes, file.status) == ("train.jsonl", 3 * len(CHAT), "processed")
    assert client.files.wait_for_processing(file.id) == file == client.files.retrieve(file.id)
    assert client.files.content(file.id).read() == CHAT * 3
    job = client.fine_tuning.jobs.create(
        model="demo",
        training_file=file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
        suffix="wit",
        metadata={"team": "a"},
        seed=3,
        integrations=[{"type": "wandb", "wandb": {"project": "p", "tags": ["t"]}}],
    )
    assert (job.status, job.hyperparameters.n_epochs, job.seed) == ("validating_files", "auto", 3)
    assert job.method.supervised.hyperparameters.n_epochs == "auto" and job.integrations[0].wandb.project == "p"
    with events_of(client, job.id) as stream:
        assert next(stream).message.startswith("Created")
        mover = threading.Thread(target=world.controller.succeed, args=(job.id,))
        mover.start()
        rest = list(stream)
        mover.join()
    assert [event.type for event in rest] == ["message", "message", "metrics", "message"]
    assert rest[2].data["step"] == 1 and rest[-1].message == "The job is now succeeded"
    assert list(events_of(client, job.id, after=rest[1].id)) == rest[2:]
    listed = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.id for event in listed][::-1][1:] == [event.id for event in rest]
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded" and job.fine_tuned_model.startswith("wit-") and job.trained_tokens == 360
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model and checkpoint.metrics.valid_loss == 0.5
    assert checkpoint.metrics.step == checkpoint.step_number == 7
    assert client.files.delete(file.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_bad_files_pause_resume_cancel_and_pages(served, client):
    world, url = served
    file = client.files.create(file=("bad.jsonl", b"{}\n"), purpose="fine-tune")
    jobs = client.fine_tuning.jobs
    bad = jobs.create(model="demo", training_file=file.id)
    world.controller.fail(bad.id, "bad.jsonl, line 1: no messages")
    bad = jobs.retrieve(bad.id)
    assert (bad.status, bad.error.param, bad.error.code) == ("failed", "training_file", "invalid_training_file")
    assert "line 1" in bad.error.message
    made = [jobs.create(model="demo", training_file=file.id, metadata={"run": "pages"}).id for _ in range(5)]
    assert [job.id for job in jobs.list(limit=2, metadata={"run": "pages"})] == made[::-1]
    assert {job.id for job in jobs.list(limit=2)} >= {bad.id, *made}
    world.controller.move(made[0], State.running)
    assert jobs.pause(made[0]).status == "paused" and jobs.resume(made[0]).status == "queued"
    assert jobs.cancel(made[0]).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        jobs.cancel(made[0])
    with pytest.raises(openai.ConflictError, match="is used by ftjob-"):
        client.files.delete(file.id)
    for id in made[1:]:
        jobs.cancel(id)
    more = [client.files.create(file=(f"{i}.jsonl", CHAT), purpose="fine-tune").id for i in range(4)]
    assert {found.id for found in client.files.list(limit=2)} == {file.id, *more}
    for id in (file.id, *more):
        client.files.delete(id)
    assert list(client.files.list()) == []
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[1], max_retries=0) as other:
        assert list(other.fine_tuning.jobs.list()) == []
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.retrieve(bad.id)


def test_what_the_client_gets_for_mistakes(served, client):
    _, url = served
    jobs = client.fine_tuning.jobs
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4o-mini' does not exist; offered: demo") as found:
        jobs.create(model="gpt-4o-mini", training_file="file-x")
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="n_epochs: must be") as found:
        jobs.create(model="demo", training_file="file-x", hyperparameters={"n_epochs": 99})
    assert found.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="allowed: fine-tune"):
        client.files.create(file=("a.jsonl", CHAT), purpose="assistants")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.files.list()


@pytest.mark.parametrize("size", [250_000, 50_000_000])
def test_an_upload_that_is_too_large_is_refused_while_it_is_sent(client, size):
    with pytest.raises(openai.APIStatusError, match=r"service\.max_file_bytes") as found:
        client.files.create(file=("a.jsonl", b"x" * size), purpose="fine-tune")
    assert found.value.status_code == 413


def test_an_upload_without_an_end_is_refused(served, client):
    sent = []

    def endless():
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        while len(sent) < 2000:
            sent.append(1)
            yield b"x" * 100_000

    headers = {"authorization": f"Bearer {KEYS[0]}", "content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{served[1]}/v1/files", content=endless(), headers=headers, timeout=60)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    assert len(sent) < 2000
    assert client.files.create(file=("a.jsonl", CHAT), purpose="fine-tune").bytes == len(CHAT)


def test_a_client_that_leaves_its_stream_frees_it(served, client):
    world, _ = served
    file = client.files.create(file=("a.jsonl", CHAT), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="demo", training_file=file.id)
    with events_of(client, job.id) as stream:
        next(stream)
        assert sum(world.backend.streams.values()) == 1
    deadline = time.monotonic() + 60
    while sum(world.backend.streams.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.fine_tuning.jobs.cancel(job.id)


@pytest.mark.slow
def test_the_whole_life_by_the_node_client(served, tmp_path):
    """Needs node, and the npm package openai below the folder that OPENAI_NODE names."""
    node, packages = shutil.which("node"), os.environ.get("OPENAI_NODE")
    if node is None or packages is None:
        pytest.skip("node, or OPENAI_NODE=FOLDER in which `npm install openai` has run, is missing")
    world, url = served
    script = tmp_path / "openai_life.mjs"
    shutil.copy(Path(__file__).with_name("openai_life.mjs"), script)
    (tmp_path / "node_modules").symlink_to(Path(packages, "node_modules").resolve())
    (tmp_path / "train.jsonl").write_bytes(CHAT * 3)
    env = {**os.environ, "BASE_URL": f"{url}/v1", "API_KEY": KEYS[0]}
    process = subprocess.Popen(
        [node, script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    with process:
        for line in process.stdout:  # what it asks of the cluster
            asked = json.loads(line)
            if asked["do"] == "done":
                break
            move = {"succeed": world.controller.succeed, "fail": world.controller.fail}[asked["do"]]
            move(asked["id"], *asked.get("with", []))
            process.stdin.write("ok\n")
            process.stdin.flush()
        assert process.wait(timeout=60) == 0
