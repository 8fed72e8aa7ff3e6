"""Chats answered by engines in the service's process: the embedded base, and versions that are published meanwhile."""

import asyncio
import dataclasses
import json
import threading

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_world import publish, write_adapter

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.service.answers.base import Cluster
from raytune_llm.service.answers.in_process import Engines
from raytune_llm.service.answers.ray_serve import Applications
from raytune_llm.service.api.chat import PATHS, chat_router
from raytune_llm.service.first_use import FirstUse
from raytune_llm.service.models import OwnedModels
from raytune_llm.service.records import owner_of, registry_name
from raytune_llm.serving.api.auth import AuthMiddleware
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.deploy import replica
from raytune_llm.stores.registry import Registry

CHAT = {"messages": [{"role": "user", "content": "Miss the bus"}], "temperature": 0, "max_tokens": 6}
CLUSTER = Cluster(environment={}, has_gpu=lambda: False)
ANN, BOB = {"authorization": "Bearer ann"}, {"authorization": "Bearer bob"}


@pytest.fixture(scope="module")
def base():
    return load("train", ["model=demo", "data.train=-"]).model


@pytest.fixture(scope="module")
def home(tmp_path_factory, base):
    """A registry with a version of Ann's."""
    root = tmp_path_factory.mktemp("home")
    name = registry_name(owner_of(key_hash("ann")), "wit", "demo")
    publish(Registry(str(root / "registry")), base, name, write_adapter(base, root / "wit", seed=1))
    return root, name


@pytest.fixture(scope="module")
def loads():
    """How often an engine was loaded."""
    return []


@pytest.fixture(scope="module")
def client(home, base, loads):
    root, _ = home
    job = load("service", ["model=demo", f"home={root}", "service/answers=in_process", "serve.requests_per_minute=8"])
    answering = job.service.answers.start(job.serve, job.registry_dir, {"demo": base}, CLUSTER)
    app = FastAPI()
    hashes = (key_hash("ann"), key_hash("bob"))
    app.add_middleware(AuthMiddleware, key_hashes=hashes, refuse=ApiError.response)
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    app.include_router(chat_router(OwnedModels(job.registry_dir, {"demo": base}), answering))
    patch, original = pytest.MonkeyPatch(), replica.Replica
    patch.setattr(replica, "Replica", lambda plan: loads.append(plan) or original(plan))
    with TestClient(app) as client:
        yield client
    answering.close()
    patch.undo()


def ask(client, model, key=ANN, **fields):
    return client.post(PATHS[0], json={"model": model, **CHAT, **fields}, headers=key)


def test_first_requests_that_come_together_load_the_base_once(client, loads):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(client, "demo", BOB))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3 and len(loads) == 1
    assert {answer.json()["model"] for answer in answers} == {"demo"}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1


def test_a_version_answers_for_its_owner_alone(client, home):
    _, name = home
    got = ask(client, name).json()
    assert got["model"] == f"{name}@1"
    assert got["choices"][0]["message"]["content"] != ask(client, "demo").json()["choices"][0]["message"]["content"]
    assert ask(client, name, BOB).json()["error"]["code"] == "model_not_found"


def test_a_version_that_is_published_meanwhile_answers_at_once(client, home, base, tmp_path):
    root, _ = home
    name = registry_name(owner_of(key_hash("ann")), "fresh", "demo")
    assert ask(client, name).status_code == 404
    publish(Registry(str(root / "registry")), base, name, write_adapter(base, tmp_path / "fresh", seed=2))
    assert ask(client, name).json()["model"] == f"{name}@1"


def test_answers_are_streamed(client, home):
    _, name = home
    with client.stream("POST", PATHS[1], json={"model": name, "prompt": "Miss", "stream": True}, headers=ANN) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert got.headers["content-type"].startswith("text/event-stream") and lines[-1] == "[DONE]"
    assert len(lines) > 2 and all(json.loads(line)["model"] == f"{name}@1" for line in lines[:-1])


def test_each_key_has_limits_of_its_own(client):
    statuses = [ask(client, "demo", max_tokens=1).status_code for _ in range(8)]
    assert 429 in statuses
    assert ask(client, "demo", BOB, max_tokens=1).status_code == 200


def test_a_serve_config_that_cannot_answer_for_later_versions_is_refused(base):
    job = load("service", ["model=demo", "service/answers=in_process"])
    for serve, words in (
        (dataclasses.replace(job.serve, discover=False), "serve.discover=false"),
        (load("service", ["model=demo", "serve=vllm"]).serve, "serve=vllm"),
    ):
        with pytest.raises(InputError, match=words):
            job.service.answers.start(serve, job.registry_dir, {"demo": base}, CLUSTER)


def test_ray_serve_answers_where_the_cluster_counts_gpus(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = load("service", ["model=demo", f"home={tmp_path}"])
    for has_gpu, kind in ((True, Applications), (False, Engines)):
        cluster = dataclasses.replace(CLUSTER, has_gpu=lambda has_gpu=has_gpu: has_gpu)
        answering = job.service.answers.start(job.serve, job.registry_dir, {"demo": base}, cluster)
        assert type(answering) is kind
        answering.close()


def called(app):
    """The status with which an app answers a request."""

    async def ask_it():
        sent = []

        async def send(message):
            sent.append(message)

        await app({"type": "http"}, None, send)
        return sent[0]["status"]

    return ask_it()


async def answers_ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_a_base_that_could_not_be_loaded_is_tried_again_later(monkeypatch, caplog):
    outcomes = [InputError("no memory"), RuntimeError("lost"), answers_ok]
    attempts = []

    async def make():
        attempts.append(1)
        outcome = outcomes[len(attempts) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def main():
        app = FirstUse("tiny", make, wait_seconds=30, most_waiting=2)
        assert [await called(app), await called(app)] == [503, 503] and len(attempts) == 1
        monkeypatch.setattr("raytune_llm.service.first_use.RETRY_SECONDS", 0)
        assert [await called(app), await called(app), await called(app)] == [503, 200, 200] and len(attempts) == 3
        app.forget()
        outcomes.append(answers_ok)
        assert await called(app) == 200 and len(attempts) == 4

    asyncio.run(main())
    assert "no memory" in caplog.text and "lost" in caplog.text


def test_requests_wait_for_a_base_in_bounded_number_and_time():
    async def main():
        may_end = asyncio.Event()

        async def make():
            await may_end.wait()
            return answers_ok

        app = FirstUse("tiny", make, wait_seconds=30, most_waiting=2)
        waiting = [asyncio.create_task(called(app)) for _ in range(2)]
        while app._num_waiting < 2:
            await asyncio.sleep(0)
        assert await called(app) == 503
        app._wait_seconds, app._most_waiting = 0.01, 3
        assert await called(app) == 503
        may_end.set()
        assert await asyncio.gather(*waiting) == [200, 200]

    asyncio.run(main())
