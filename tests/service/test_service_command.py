"""The service as a command: what is refused before anything starts, what it prints, and how it ends."""

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs import service as command
from raytune_llm.jobs.config import compose, load
from raytune_llm.jobs.offering import offered_bases
from raytune_llm.jobs.web_server import WebServer
from raytune_llm.session import FILE, MODE, TOKEN


def job_of(*overrides):
    return load("service", ["model=demo", *overrides])


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def no_cluster(monkeypatch):
    """Fails where a cluster is looked for."""

    def never(*_):
        raise AssertionError("a cluster was looked for")

    monkeypatch.setattr("raytune_llm.service.ray_cluster.open_cluster", never)


def test_what_cannot_be_served_is_refused_at_once(no_cluster, free_port, monkeypatch):
    monkeypatch.setenv("NO_KEYS", " , ")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        busy = holder.getsockname()[1]
        for overrides, words in (
            ([f"service.port={busy}"], f"service.port={busy} is in use on 127.0.0.1; choose another by service.port=…"),
            (["service.api_key_env=NO_KEYS"], "service.api_key_env=NO_KEYS: this environment variable holds no key"),
            (["model=nobody"], "model=nobody can't be offered.*\n.*\n\tdemo"),
            (["model=../demo"], "expected the name of a file of conf/model"),
            (["model.name_or_path=/nowhere/x"], "/nowhere/x: no such folder"),
            (["model.wrong=1"], "unknown key: model.wrong"),
            (["service.overrides.tuning.epochs=1"], "unknown key: tuning.epochs"),
        ):
            with pytest.raises(InputError, match=words):
                command.run_service(job_of(f"service.port={free_port}", *overrides))
    with pytest.raises(InputError, match="needs API keys"):
        job_of("service.host=0.0.0.0")


def test_a_port_that_was_refused_for_another_reason_is_free_again(no_cluster, free_port):
    with pytest.raises(InputError):
        command.run_service(job_of(f"service.port={free_port}", "model=nobody"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port))


def test_bases_are_composed_as_jobs_compose_them():
    bases = offered_bases(job_of("model.learning_rate=0.25", "service.overrides.tuning.eval_every=3").service)
    assert list(bases) == ["demo"] and bases["demo"].learning_rate == 0.25
    assert [*job_of("model=demo,qwen3-0.6b").service.models] == ["demo", "qwen3-0.6b"]


def test_composing_leaves_a_running_commands_state_alone():
    from hydra.core.global_hydra import GlobalHydra

    own = object()
    GlobalHydra.instance().hydra = own
    try:
        assert compose("check", ["data.train=-"]).seed == 0
        assert GlobalHydra.instance().hydra is own
    finally:
        GlobalHydra.instance().clear()


def test_the_cluster_gets_no_keys_of_clients(monkeypatch):
    monkeypatch.setenv("CLIENTS", "secret")
    monkeypatch.setenv(TOKEN, "another clusters")
    head = SimpleNamespace(environment={"RAY_ADDRESS": "127.0.0.1:1", MODE: "token", FILE: "/token"})
    assert "CLIENTS" not in command.environment_of(None, "CLIENTS") and TOKEN in command.environment_of(None, None)
    own = command.environment_of(head, "CLIENTS")
    assert (own["RAY_ADDRESS"], own[FILE]) == ("127.0.0.1:1", "/token") and not {"CLIENTS", TOKEN} & set(own)


class Quiet:
    """The parts of a service that nothing is asked of."""

    is_idle = True
    ended = ()

    def has_gpu(self):
        return False

    def start(self): ...

    def close(self):
        Quiet.ended += ("closed",)


@pytest.fixture
def quiet(monkeypatch):
    """The command over a controller, cluster and answers that do nothing."""
    Quiet.ended = ()
    monkeypatch.setattr("raytune_llm.service.ray_cluster.open_cluster", lambda *_: (Quiet(), None))
    monkeypatch.setattr("raytune_llm.service.controller.Controller", lambda *_, **__: Quiet())
    monkeypatch.setattr("raytune_llm.service.answers.auto.Auto.start", lambda *_: Quiet())


def test_it_serves_until_it_is_told_to_end(quiet, free_port, monkeypatch, capsys):
    monkeypatch.setenv("CLIENTS", "ann,bob")
    url, seen = f"http://127.0.0.1:{free_port}", {}
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def client():
        while True:
            try:
                seen["health"] = httpx.get(f"{url}/healthz").status_code
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        seen["page"] = httpx.get(f"{url}/tuning").status_code
        seen["stranger"] = httpx.get(f"{url}/v1/models").status_code
        seen["models"] = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer ann"}).json()["data"]
        seen["api"] = httpx.get(f"{url}/openapi.json", headers={"authorization": "Bearer ann"}).json()["paths"]
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        assert command.run_service(job_of(f"service.port={free_port}", "service.api_key_env=CLIENTS")) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), former, strict=True):
            signal.signal(number, handler)
    thread.join()
    assert (seen["health"], seen["page"], seen["stranger"]) == (200, 200, 401)
    assert [model["id"] for model in seen["models"]] == ["demo"]
    assert {"/v1/chat/completions", "/v1/files", "/v1/fine_tuning/jobs", "/v1/models"} <= set(seen["api"])
    assert Quiet.ended == ("closed", "closed")
    printed = capsys.readouterr().out
    lines = ("bases           demo", "OPENAI_API_KEY=$YOUR_KEY", "stopping:", "stopped")
    for words in (f"{url}/v1", f"{url}/tuning", *lines):
        assert words in printed


def test_an_open_answer_ends_before_the_server_does(free_port):
    may_end, events = threading.Event(), []

    async def app(scope, receive, send):
        import asyncio

        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while not may_end.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"b"})

    server = WebServer(app, drain_seconds=60, on_start=lambda: events.append("start"), on_stop=may_end.set)
    listener = socket.socket()
    listener.bind(("127.0.0.1", free_port))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not events:
        assert thread.is_alive()
    with httpx.stream("GET", f"http://127.0.0.1:{free_port}/") as response:
        parts = response.iter_raw()
        assert next(parts) == b"a"
        server.should_exit = True
        assert b"".join(parts) == b"b"
    thread.join()


def test_what_is_left_is_named_at_the_end():
    def store(*states):
        statuses = {str(i): SimpleNamespace(state=command.State(state)) for i, state in enumerate(states)}
        return SimpleNamespace(requests=lambda: [SimpleNamespace(id=id) for id in statuses], status=statuses.get)

    assert command.farewell(store("succeeded", "paused")) == "stopped"
    assert command.farewell(store("running")).startswith("stopped; 1 job runs on: ")
    assert command.farewell(store("running", "running", "queued")).startswith("stopped; 2 jobs run on: ")
    assert "1 job left: " in command.farewell(store("queued"))
    assert "2 running, 1 waiting, 1 paused" in command.greeting(
        job_of(), store("running", "running", "queued", "paused", "failed")
    )
