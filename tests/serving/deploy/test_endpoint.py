"""The endpoint as users meet it: on Ray Serve, through the openai client."""

import concurrent.futures
import dataclasses
import os
import re
import socket
import threading
import time
import urllib.request

import openai
import psutil
import pytest
from serving_world import ENGINE, greedy_text, make_base, publish, write_adapter, write_model
from test_session import grpc_status, http_status, is_loopback, settled

from raytune_llm.data.records import Message
from raytune_llm.errors import InputError
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.catalog import catalog_of
from raytune_llm.serving.deploy import endpoint as deployment
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.engine.prompts import of_text
from raytune_llm.serving.verify.endpoint import check_endpoint
from raytune_llm.serving.verify.parity import ParityError
from raytune_llm.stores.registry import Registry

KEY = "a-long-random-word"
PROBES = ["Miss the bus", (Message("user", "What a lovely day"),), "naïve café", "bus " * 100]
ADAPTERS = ["tiny", "wit", "dry"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "registry"))
    for seed, name in enumerate(("wit", "dry"), 1):
        publish(registry, base, name, write_adapter(base, root / name, seed=seed))
    publish(registry, base, "whole", write_model(base, root / "whole", seed=5), kind="model")
    registry.promote(registry.resolve("wit@1"))
    return registry


def chosen(registry, **changed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return deployment.Serve(
        **{
            "deploy": True,
            "host": "127.0.0.1",
            "port": port,
            "num_replicas": 1,
            "max_replicas": 1,
            "target_open_answers": 4,
            "upscale_delay_seconds": 30.0,
            "downscale_delay_seconds": 600.0,
            "max_concurrent_requests": 8,
            "max_tokens": 120,
            "request_timeout_seconds": 60.0,
            "max_waiting_requests": 16,
            "body_timeout_seconds": 10.0,
            "drain_seconds": 60.0,
            "max_body_bytes": 10_000,
            "api_key_env": "RAYTUNE_LLM_TEST_KEY",
            "cors_origins": (),
            "requests_per_minute": None,
            "tokens_per_minute": None,
            "max_on_demand": 0,
            "follow_seconds": 0.2,
            "discover": False,
            "config_file": None,
            "engine": ENGINE,
            **changed,
        }
    )


@pytest.fixture(scope="module")
def endpoint(ray_session, registry):
    os.environ["RAYTUNE_LLM_TEST_KEY"] = KEY
    started = deployment.start(chosen(registry), registry.root, ["wit@champion", "dry", "whole@1"])
    yield started
    deployment.stop()


@pytest.fixture(scope="module")
def client(endpoint):
    return openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def expected(endpoint, registry, tmp_path_factory):
    """What PEFT's generate answers, by model and prompt."""
    base = endpoint.catalog.base
    prompts = [f"{word} the bus" for word in ("Miss", "Catch", "Hate", "Oh great,")]
    found = {}
    for entry in endpoint.catalog.entries:
        model = read_model(entry, base, registry, tmp_path_factory.mktemp("cache"))
        reference = base.load().eval() if model.folder is None else load_tuned(model.folder, base)
        for prompt in prompts:
            found[entry.names[-1], prompt] = greedy_text(reference, model, of_text(model, prompt).ids, 24)
    return found


def chat(client, model="wit", **more):
    request = {"max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Miss the bus"}]}
    return client.chat.completions.create(model=model, **{**request, **more})


def health(endpoint):
    with urllib.request.urlopen(endpoint.url.removesuffix("/v1") + "/healthz") as response:
        return response.read()


def idle_within(endpoint, seconds):
    deadline = time.monotonic() + seconds
    while b'"running":0' not in health(endpoint):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_models(client, endpoint):
    assert [model.id for model in client.models.list()] == endpoint.models
    assert endpoint.models == ["tiny", "wit@1", "wit", "wit@champion", "dry@1", "dry", "whole@1", "whole"]
    assert client.models.retrieve("wit@champion").root == "wit@1"


def test_chat_whole_and_streamed(client):
    whole = chat(client)
    assert whole.model == "wit@1"
    assert whole.usage.completion_tokens == 8
    assert whole._request_id
    stream = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert stream[-1].usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream[:-1])
    assert text == whole.choices[0].message.content
    assert sum(bool(chunk.choices[0].delta.content) for chunk in stream[:-1]) > 2
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_seeds_and_stop_strings(client):
    def sampled(seed):
        return (
            client.completions.create(model="dry", prompt="Miss", max_tokens=12, temperature=1.2, seed=seed)
            .choices[0]
            .text
        )

    assert sampled(1) == sampled(1) != sampled(2)
    whole = client.completions.create(model="dry", prompt="Miss", max_tokens=12, temperature=0).choices[0].text
    stopped = client.completions.create(model="dry", prompt="Miss", max_tokens=12, temperature=0, stop=whole[4:6])
    assert stopped.choices[0].text == whole[: whole.index(whole[4:6])]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors_reach_the_client_as_openais(client, endpoint):
    with pytest.raises(
        openai.NotFoundError, match="the model 'wit@7' is not served here; served: tiny, wit@1"
    ) as error:
        chat(client, model="wit@7")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(client, temperature="hot")
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, messages=[{"role": "user", "content": "bus " * 200}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the chat template of wit@1 has no place for tools"):
        chat(client, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.APIStatusError) as error:
        chat(client, messages=[{"role": "user", "content": "x" * 20_000}])
    assert error.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        chat(openai.OpenAI(base_url=endpoint.url, api_key="guess"))
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="wit", input="x")


def test_many_at_once_are_each_answered_by_the_right_model(client, expected):
    assert len({expected[model, "Miss the bus"] for model in ("tiny", "wit@champion", "dry", "whole")}) == 4

    def ask(key):
        model, prompt = key
        return client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0).choices[0].text

    keys = list(expected) * 3
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, keys))
    assert [answer.lstrip() for answer in answers] == [expected[key] for key in keys]


def test_a_client_that_leaves_ends_its_answer(client, endpoint):
    stream = client.completions.create(model="wit", prompt="Miss", max_tokens=100, temperature=1.5, seed=1, stream=True)
    next(iter(stream))
    stream.close()
    assert idle_within(endpoint, 5)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).completions.create(model="wit", prompt="Miss", max_tokens=100, temperature=0)
    assert idle_within(endpoint, 5)
    assert chat(client).choices[0].message.content


def test_the_endpoint_passes_the_parity_check(endpoint, registry):
    results = check_endpoint(endpoint, registry.root, PROBES)
    assert [result.model for result in results] == ["wit@1", "dry@1", "whole@1"]
    assert all(result.reference_difference_nats < 1e-4 < 0.1 < result.base_difference_nats for result in results)
    assert re.fullmatch(
        r"parity check passed: wit@1 matches PEFT on 4 probes \(log-probabilities within \de-0\d nats; "
        r"differs from the base by \d+(\.\d+)?\)",
        str(results[0]),
    )


def test_the_parity_check_fails_when_another_adapter_answers(endpoint, registry):
    swapped = dataclasses.replace(
        endpoint,
        catalog=dataclasses.replace(
            endpoint.catalog,
            entries=tuple(
                dataclasses.replace(entry, version=registry.resolve("dry")) if entry.id == "wit@1" else entry
                for entry in endpoint.catalog.entries
            ),
        ),
    )
    with pytest.raises(ParityError, match=r"wit@1 at .* is not what was tuned: after 'Miss the bus'"):
        check_endpoint(swapped, registry.root, PROBES)


def test_a_second_endpoint_is_refused_while_one_runs(endpoint, registry):
    with pytest.raises(InputError, match="runs Ray Serve already"):
        deployment.start(chosen(registry), registry.root, ["dry"])
    assert b"ok" in health(endpoint)


def test_of_a_served_endpoint_nothing_answers_other_machines_without_rays_token(endpoint):
    """Ray Serve's replicas listen on all addresses, which no setting changes."""
    found = settled(psutil.Process())
    reachable = {port: name for (ip, port), name in found.items() if not is_loopback(ip)}
    assert set(reachable.values()) == {"ray::ServeReplica:raytune_llm:endpoint"}
    method = "/ray.serve.ASGIService/HandleRequest"
    assert {grpc_status(port, method) for port in reachable} == {"UNAUTHENTICATED"}
    posted = {port: http_status(port, "/api/job_agent/jobs/", b'{"entrypoint": "true"}') for _, port in found}
    assert set(posted.values()) == {401, 405, None}
    (own,) = (port for port in posted if f":{port}/" in endpoint.url)
    assert posted[own] == 401  # without an API key


def test_an_alias_moves_while_clients_ask(client, endpoint, registry, tmp_path):
    """No answer fails, and each is that of the version which it names."""
    base, answers = endpoint.catalog.base, {}
    second = publish(registry, base, "wit", write_adapter(base, tmp_path / "second", seed=7))
    for version in (registry.resolve("wit@1"), second):
        model = read_model(catalog_of(endpoint.catalog, [version]).entries[1], base, registry, tmp_path)
        prompt = model.tokens.prompt("Miss the bus")
        answers[model.id] = greedy_text(load_tuned(model.folder, base), model, prompt, 24)
    assert answers["wit@1"] != answers["wit@2"]
    found, has_ended = [], threading.Event()

    def keep_asking(_):
        while not has_ended.is_set():
            answer = client.completions.create(model="wit@champion", prompt=prompt, max_tokens=24, temperature=0)
            found.append((answer.model, answer.choices[0].text.lstrip()))

    def until_answered_by(id):
        deadline, begun = time.monotonic() + 60, len(found)
        while id not in {name for name, _ in found[begun:]}:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(4)]
        try:
            until_answered_by("wit@1")
            registry.promote(second)
            until_answered_by("wit@2")
            registry.rollback("wit")
            until_answered_by("wit@1")
        finally:
            has_ended.set()
        assert [future.exception() for future in asking] == [None] * 4
    assert [(name, text) for name, text in found if text != answers[name]] == []
