"""Chats answered by Ray Serve, through the service's proxy: the whole life of an application, and the proxy alone."""

import asyncio
import dataclasses
import json
import os
import time

import httpx
import pytest
import ray
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_world import publish, write_adapter

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.service.answers import ray_serve as choice
from raytune_llm.service.answers.base import Cluster
from raytune_llm.service.api.chat import PATHS, chat_router
from raytune_llm.service.models import OwnedModels
from raytune_llm.service.records import owner_of, registry_name
from raytune_llm.service.reverse_proxy import ReverseProxy
from raytune_llm.serving.api.auth import AuthMiddleware
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.stores.registry import Registry

CHAT = {"messages": [{"role": "user", "content": "Miss the bus"}], "temperature": 0, "max_tokens": 6}
ANN, BOB = {"authorization": "Bearer ann"}, {"authorization": "Bearer bob"}


def job_of(home, *overrides):
    return load("service", ["model=demo", f"home={home}", "service/answers=ray_serve", *overrides])


def client_of(job, base, answering):
    app = FastAPI()
    app.add_middleware(AuthMiddleware, key_hashes=(key_hash("ann"), key_hash("bob")), refuse=ApiError.response)
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    app.include_router(chat_router(OwnedModels(job.registry_dir, {"demo": base}), answering))
    return TestClient(app)


def cluster_of(**environment):
    return Cluster(environment=os.environ | environment, has_gpu=lambda: False)


def deployed():
    """When each application was deployed, by its name."""
    from ray import serve

    return {name: status.last_deployed_time_s for name, status in serve.status().applications.items()}


@pytest.mark.slow  # starts Ray Serve three times, with a replica each
def test_an_application_is_started_reused_and_ended(ray_session, tmp_path):
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    cluster = cluster_of(RAY_ADDRESS=f"127.0.0.1:{port}")
    job = job_of(tmp_path, "serve.requests_per_minute=6", "serve.request_timeout_seconds=300")
    base = load("train", ["model=demo", "data.train=-"]).model
    name = registry_name(owner_of(key_hash("ann")), "wit", "demo")
    publish(Registry(job.registry_dir), base, name, write_adapter(base, tmp_path / "wit", seed=1))

    first = job.service.answers.start(job.serve, job.registry_dir, {"demo": base}, cluster)
    with client_of(job, base, first) as client:
        ask = lambda model, key=ANN: client.post(PATHS[0], json={"model": model, **CHAT}, headers=key)  # noqa: E731
        of_base, of_version = ask("demo"), ask(name)
        assert (of_base.status_code, of_version.json()["model"]) == (200, f"{name}@1"), of_base.text
        assert of_base.json()["choices"] != of_version.json()["choices"]
        with client.stream("POST", PATHS[0], json={"model": name, "stream": True, **CHAT}, headers=ANN) as got:
            lines = [line for line in got.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and len(lines) > 3
        assert 429 in [ask("demo").status_code for _ in range(6)] and ask("demo", BOB).status_code == 200
        url = first._proxies[next(iter(first._proxies))]._url
        assert httpx.post(f"{url}{PATHS[0]}", json={"model": "demo", **CHAT}).status_code == 401
    [(app, begun)] = deployed().items()
    first._closing.set()  # as if killed: what runs on the cluster is left as it is

    again = job.service.answers.start(job.serve, job.registry_dir, {"demo": base}, cluster)
    with client_of(job, base, again) as client:
        assert client.post(PATHS[0], json={"model": "demo", **CHAT}, headers=BOB).status_code == 200
    assert deployed() == {app: begun}
    again.close()
    assert not {actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)} & {"serve"}

    changed = job_of(
        tmp_path, "serve.max_tokens=8", "service.answers.idle_seconds=1", "serve.request_timeout_seconds=300"
    )
    idle = changed.service.answers.start(changed.serve, job.registry_dir, {"demo": base}, cluster)
    with client_of(changed, base, idle) as client:
        assert client.post(PATHS[0], json={"model": "demo", **CHAT}, headers=BOB).status_code == 200
        while idle._used:  # ended by the watcher
            assert idle._watcher.is_alive()
            time.sleep(0.2)
    [order] = idle._orders.values()
    assert choice.follow({"do": "keep", "prefix": "", "apps": [order["app"]]}, cluster.environment) == []
    idle.close()


def test_the_answer_of_a_process_is_read_among_other_lines():
    lines = [b"Ray says\n", b'{"note": "waits"}', b"[1]", b'{"done": 2}']
    assert choice._result([found for line in lines if (found := choice._parsed(line)) is not None]) == 2
    with pytest.raises(InputError, match="no GPU"):
        choice._result([{"error": "no GPU"}])
    with pytest.raises(RuntimeError, match="without an answer"):
        choice._result([{"note": "waits"}])


def test_an_application_is_named_by_what_it_was_started_with(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "follow", lambda order, environment: order["apps"])
    job = job_of(tmp_path)
    base = load("train", ["model=demo", "data.train=-"]).model

    def names(serve=job.serve, home=job.registry_dir):
        made = job.service.answers.start(serve, home, {"demo": base}, cluster_of())
        made._closing.set()
        return [order["app"] for order in made._orders.values()], dict(made._used)

    (first, used), (second, kept) = names(), names()
    assert first == second and used == {} and list(kept) == first  # the second one looks for what the first left
    assert names(dataclasses.replace(job.serve, port=9999))[0] == first
    assert names(dataclasses.replace(job.serve, max_tokens=3))[0] != first
    assert names(home=f"{tmp_path}/other")[0] != first
    keys = [file for file in (tmp_path / "cache/raytune_llm/service_keys").iterdir()]
    assert len(keys) == 2 and all(file.stat().st_mode & 0o077 == 0 for file in keys)


class Upstream(httpx.AsyncBaseTransport):
    """A server that gives one answer, and knows whether it was left."""

    def __init__(self, answer):
        self.answer, self.request, self.was_closed = answer, None, False

    async def handle_async_request(self, request):
        self.request = request
        await request.aread()
        if isinstance(self.answer, Exception):
            raise self.answer
        status, headers, parts = self.answer

        async def stream():
            try:
                for part in parts:
                    if isinstance(part, Exception):
                        raise part
                    if isinstance(part, asyncio.Event):
                        await part.wait()
                    else:
                        yield part
            finally:
                self.was_closed = True

        return httpx.Response(status, headers=headers, content=stream())


def proxied(upstream, *, leaves=None):
    """What the proxy sends, and how often it found that nobody answers. leaves: set when the client is to leave."""
    sent, lost = [], []

    async def main():
        proxy = ReverseProxy(
            "http://there/x", "key", read_seconds=5, on_lost=lambda: lost.append(1), transport=upstream
        )
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            if leaves is None:
                await asyncio.Event().wait()
            while not leaves(sent):
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"accept", b"*/*")]}
        try:
            await proxy(scope, receive, send)
        finally:
            assert proxy.num_open == 0

    asyncio.run(main())
    return sent, len(lost)


def test_the_proxy_streams_and_sends_its_key():
    upstream = Upstream((200, {"content-type": "text/event-stream", "connection": "close"}, [b"a", b"b"]))
    sent, lost = proxied(upstream)
    assert [message.get("body") for message in sent] == [None, b"a", b"b", b""] and not lost
    assert dict(sent[0]["headers"])[b"content-type"] == b"text/event-stream" and b"connection" not in dict(
        sent[0]["headers"]
    )
    assert str(upstream.request.url) == "http://there/x/v1/completions"
    assert upstream.request.headers["authorization"] == "Bearer key" and upstream.request.content == b"{}"


def test_a_client_that_leaves_ends_the_answer_behind():
    upstream = Upstream((200, {}, [b"a", asyncio.Event(), b"never"]))
    sent, lost = proxied(upstream, leaves=lambda sent: len(sent) == 2)
    assert [message.get("body") for message in sent] == [None, b"a"] and upstream.was_closed and not lost


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ConnectError("refused"),
        (404, {"content-type": "text/plain; charset=utf-8"}, [b"Path '/x' not found."]),
        (503, {"content-type": "application/json"}, [b'{"error": {"code": "unavailable"}}']),
    ],
)
def test_an_application_that_is_gone_is_started_again(answer):
    sent, lost = proxied(Upstream(answer))
    assert (sent[0]["status"], lost) == (503, 1) and (b"retry-after", b"5") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "unavailable"


def test_an_application_that_is_full_is_left_alone():
    body = json.dumps(ApiError(503, "full", code="overloaded").body()).encode()
    sent, lost = proxied(Upstream((503, {"content-type": "application/json"}, [body])))
    assert (sent[0]["status"], sent[1]["body"], lost) == (503, body, 0)


def test_an_answer_that_is_cut_off_ends_its_connection():
    with pytest.raises(ConnectionError, match="cut off"):
        proxied(Upstream((200, {}, [b"a", httpx.ReadError("lost")])))


def test_an_answer_that_takes_too_long_is_408():
    sent, lost = proxied(Upstream(httpx.ReadTimeout("late")))
    assert (sent[0]["status"], lost) == (408, 0)
