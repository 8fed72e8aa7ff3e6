"""Failures stay where they are: damaged adapters, a killed replica, an endpoint that is removed while it answers."""

import concurrent.futures
import socket
import threading
import time
from pathlib import Path

import openai
import pytest
import torch
from serving_world import greedy_text, make_base, publish, write_adapter
from test_app import TEXT, client_of, make_replica
from test_serve_config import serve

from raytune_llm.errors import InputError
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.deploy import endpoint as deployment
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.engine.prompts import of_text
from raytune_llm.stores.registry import Registry

PROMPT = "Miss the bus"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "registry"))
    for seed in range(8):
        publish(registry, base, f"a{seed}", write_adapter(base, root / f"a{seed}", seed=seed, rank=1 + seed))
    return registry


def truncated(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    torch.save({"x": torch.zeros(1)}, folder / "adapter_model.bin")


def not_json(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": ')


def no_tokenizer(folder):
    (folder / "tokenizer_config.json").unlink()


def too_large(folder):
    write_adapter(make_base(folder.parent / "again"), folder, seed=1, rank=33)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "not a whole safetensors file"),
        (pickled, "pickle files run code"),
        (not_json, "adapter_config.json that PEFT can't read"),
        (no_tokenizer, "no tokenizer_config.json"),
        (too_large, "rank 33, more than serve.engine.max_adapter_size=32"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_reason_and_the_others_are_served(tmp_path, damage, reason):
    base = make_base(tmp_path / "tiny")
    registry = Registry(str(tmp_path / "registry"))
    publish(registry, base, "good", write_adapter(base, tmp_path / "good", seed=1))
    bad = publish(registry, base, "bad", write_adapter(base, tmp_path / "bad", seed=2))
    damage(Path(bad.path))
    replica = make_replica(registry, ["good", "bad"])
    assert list(replica.refused()) == ["bad@1"] and reason in replica.refused()["bad@1"]
    client = client_of(replica)
    assert client.post("/v1/completions", json={**TEXT, "model": "bad"}).status_code == 404
    assert client.post("/v1/completions", json={**TEXT, "model": "good"}).json()["usage"]["completion_tokens"] == 8
    replica.close()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(registry, **changed):
    fixed = {"max_tokens": 100, "request_timeout_seconds": 60.0, "max_concurrent_requests": 16}
    chosen = serve(port=free_port(), **fixed, **changed)
    return deployment.start(chosen, registry.root, [f"a{i}" for i in range(8)])


def expected(endpoint, registry, max_tokens, folder):
    """PEFT's greedy answers, by model."""
    base, found = endpoint.catalog.base, {}
    for entry in endpoint.catalog.entries[1:]:
        model = read_model(entry, base, registry, folder)
        prompt = of_text(model, PROMPT).ids
        found[entry.id] = greedy_text(load_tuned(model.folder, base), model, prompt, max_tokens)
    return found


def replicas():
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in named if actor["name"].startswith("SERVE_REPLICA::raytune_llm#endpoint#")]
    return [ray.get_actor(name, namespace="serve") for name in names]


def test_a_killed_replica_takes_only_its_own_requests_with_it(ray_session, registry, tmp_path):
    import ray

    fractional = {**vars(serve().engine), "cpus_per_replica": 0.5}
    endpoint = started(registry, num_replicas=2, max_replicas=2, engine=type(serve().engine)(**fractional))
    answers = expected(endpoint, registry, 100, tmp_path)
    client = openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0, timeout=60)
    begun = threading.Semaphore(0)

    def ask(model):
        text = ""
        stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=100, temperature=0, stream=True)
        for event in stream:
            begun.release()
            text += event.choices[0].text
        return text

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        running = {pool.submit(ask, model): model for model in list(answers) * 2}
        for _ in range(16):
            begun.acquire()
        loads = {replica: ray.get(replica.get_num_ongoing_requests.remote()) for replica in replicas()}
        victim, on_victim = max(loads.items(), key=lambda pair: pair[1])
        ray.kill(victim, no_restart=True)
        concurrent.futures.wait(running)
    failed = [future for future in running if future.exception() is not None]
    assert len(loads) == 2 and len(failed) <= on_victim < 16
    for future, model in running.items():
        if future not in failed:
            assert future.result().lstrip() == answers[model]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        after = list(pool.map(ask, answers))
    assert [text.lstrip() for text in after] == list(answers.values())
    deployment.stop()


def test_an_endpoint_that_is_taken_down_ends_its_answers_first(ray_session, registry, tmp_path):
    endpoint = started(registry)
    answers = expected(endpoint, registry, 100, tmp_path)
    client = openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0, timeout=60)

    def ask(model):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=100, temperature=0).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, model) for model in answers]
        health = endpoint.url.removesuffix("/v1") + "/healthz"
        deadline = time.monotonic() + 30
        while client._client.get(health).json()["running"] < 8 and not any(f.done() for f in running):
            assert time.monotonic() < deadline
        deployment.stop()
        assert [future.result().lstrip() for future in running] == list(answers.values())


def test_a_ray_serve_that_does_not_start_leaves_none(registry, monkeypatch):
    """Another start would be refused."""
    done = []

    def start(**options):
        done.append("start")
        raise TimeoutError("HTTP proxies not available after 60s.")

    monkeypatch.setattr(deployment, "_require_no_other_endpoint", lambda: None)
    monkeypatch.setattr(deployment, "stop", lambda: done.append("stop"))
    monkeypatch.setattr("ray.serve.start", start)
    with pytest.raises(InputError, match=r"proxy was not ready in time \(HTTP proxies not available after 60s"):
        started(registry)
    assert done == ["start", "stop"]


@pytest.mark.slow
def test_of_two_thousand_requests_none_is_answered_by_another_adapter(ray_session, registry, tmp_path):
    """Two minutes: 2,000 requests by 16 clients over 8 adapters, of which 5 at a time are in memory."""
    few = {**vars(serve().engine), "max_resident_adapters": 5}
    endpoint = started(registry, engine=type(serve().engine)(**few))
    answers = expected(endpoint, registry, 24, tmp_path)
    assert len(set(answers.values())) == 8
    client = openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0, timeout=120)

    def ask(model):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0).choices[0].text

    models = list(answers) * 250
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, models))
    deployment.stop()
    assert [text.lstrip() for text in texts] == [answers[model] for model in models]
