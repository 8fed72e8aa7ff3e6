"""The HTTP face over a real engine, without Ray: shapes, limits and refusals."""

import asyncio
import json
import re
import time
from dataclasses import replace

import pytest
import torch
from serving_world import CONTEXT_TOKENS, ENGINE, make_base, publish, write_adapter
from starlette.testclient import TestClient

from raytune_llm.serving.api import errors
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.api.lengths import Limits
from raytune_llm.serving.api.rate_limit import KeyLimits
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.serving.deploy import model_manager
from raytune_llm.serving.deploy.replica import Plan, Replica
from raytune_llm.stores.registry import Registry

LIMITS = Limits(
    max_tokens=64, context_tokens=CONTEXT_TOKENS, shares_context=True, request_timeout_seconds=30.0, max_body_bytes=4096
)
CHAT = {"model": "wit", "messages": [{"role": "user", "content": "Miss the bus"}], "temperature": 0, "max_tokens": 8}
TEXT = {"model": "wit", "prompt": "Miss the bus", "temperature": 0, "max_tokens": 8}


def make_replica(registry, references, **changed):
    plan = Plan(
        catalog=read_catalog(registry, references),
        registry_dir=registry.root,
        engine=replace(ENGINE, cache_bytes=changed.pop("cache_bytes", None)),
        limits=changed.pop("limits", LIMITS),
        max_running=4,
        key_hashes=changed.pop("key_hashes", ()),
        key_limits=KeyLimits(changed.pop("requests_per_minute", None), changed.pop("tokens_per_minute", None)),
        max_on_demand=changed.pop("max_on_demand", 0),
        cors_origins=changed.pop("cors_origins", ()),
    )
    assert not changed
    replica = Replica(plan)
    asyncio.run(replica.reconfigure({"versions": [version.reference for version in plan.catalog.versions]}))
    return replica


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "registry"))
    publish(registry, base, "wit", write_adapter(base, root / "wit", seed=1))
    return registry


def client_of(replica):
    return TestClient(replica.__serve_build_asgi_app__(), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def replica(registry):
    return make_replica(registry, ["wit"])


@pytest.fixture(scope="module")
def client(replica):
    return client_of(replica)


def error(response, status, code, param=None):
    body = response.json()
    assert (response.status_code, body["error"]["code"], body["error"]["param"]) == (status, code, param), body
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1] == "[DONE]"


def test_health_and_models(client):
    assert client.get("/healthz").json() == {"status": "ok", "running": 0}
    listed = client.get("/v1/models").json()["data"]
    assert [(entry["id"], entry["root"], entry["parent"]) for entry in listed] == [
        ("tiny", "tiny", None),
        ("wit@1", "wit@1", "tiny"),
        ("wit", "wit@1", "tiny"),
    ]
    assert client.get("/v1/models/wit").json() == listed[2]
    error(client.get("/v1/models/../../etc"), 404, "not_found")
    error(client.get("/v1/models/no/such"), 404, "model_not_found", "model")


def test_a_whole_chat_answer(client):
    body = client.post("/v1/chat/completions", json={**CHAT, "logprobs": True, "top_logprobs": 2}).json()
    choice = body["choices"][0]
    assert (body["object"], body["model"], choice["finish_reason"]) == ("chat.completion", "wit@1", "length")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] and choice["message"]["content"] == choice["message"]["content"].lstrip()
    assert body["usage"]["completion_tokens"] == 8 == len(choice["logprobs"]["content"])
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 8
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_a_streamed_answer_is_the_whole_one_in_pieces(client):
    for path, ask, piece in (
        ("/v1/chat/completions", CHAT, lambda choice: choice["delta"].get("content", "")),
        ("/v1/completions", TEXT, lambda choice: choice["text"]),
    ):
        whole = client.post(path, json=ask).json()
        found, is_done = events(
            client.post(path, json={**ask, "stream": True, "stream_options": {"include_usage": True}})
        )
        assert is_done
        assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
        choices = [event["choices"][0] for event in found[:-1]]
        text = "".join(map(piece, choices))
        assert text == (whole["choices"][0].get("text") or whole["choices"][0]["message"]["content"])
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        without, _ = events(client.post(path, json={**ask, "stream": True}))
        assert not any("usage" in event for event in without)


def test_completions_take_token_ids_and_tell_logprobs(client, replica):
    ids = replica._model_manager._models["wit@1"].tokens.tokenizer(TEXT["prompt"]).input_ids
    by_text = client.post("/v1/completions", json={**TEXT, "logprobs": 2}).json()["choices"][0]
    by_ids = client.post("/v1/completions", json={**TEXT, "prompt": ids, "logprobs": 2}).json()["choices"][0]
    assert by_text == by_ids
    assert len(by_text["logprobs"]["tokens"]) == len(by_text["logprobs"]["text_offset"]) == 8


def test_wrong_requests_are_refused_in_openais_shape(client):
    def chat(content):
        body = content if isinstance(content, bytes) else json.dumps(content)  # ASCII, lone surrogates as escapes
        return client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    def text(**changed):
        return client.post("/v1/completions", json={**TEXT, **changed})

    error(chat({**CHAT, "model": "../../wit"}), 404, "model_not_found", "model")
    assert "Expecting" in error(chat(b"{"), 400, "invalid_json")
    error(chat(b'{"model": "\xff"}'), 400, "invalid_request")
    error(chat([]), 400, "invalid_type")
    error(chat({"model": "wit"}), 400, "missing_required_parameter", "messages")
    error(chat({**CHAT, "temperature": "hot"}), 400, "invalid_type", "temperature")
    error(chat({**CHAT, "temperature": 3}), 400, "invalid_value", "temperature")
    error(chat({**CHAT, "store": True}), 400, "unsupported_parameter", "store")
    error(chat({**CHAT, "\ud800": 1}), 400, "invalid_value")
    error(text(prompt=[1, 10**6]), 400, "invalid_value", "prompt")
    error(text(prompt=["a", 5]), 400, "invalid_type", "prompt")
    error(client.post("/v1/embeddings", json={}), 404, "not_found")
    error(client.get("/v1/completions"), 405, "method_not_allowed")
    form = client.post("/v1/completions", content=json.dumps(TEXT))
    assert "Content-Type: application/json" in error(form, 400, "invalid_type")


def test_lengths_beyond_the_limits(client):
    post = client.post
    assert "limit of 64" in error(
        post("/v1/completions", json={**TEXT, "max_tokens": 65}), 400, "invalid_value", "max_tokens"
    )
    long = error(
        post("/v1/completions", json={**TEXT, "prompt": "bus " * 200}), 400, "context_length_exceeded", "prompt"
    )
    assert f"context is {CONTEXT_TOKENS} tokens" in long
    ids = [5] * (CONTEXT_TOKENS - 10)
    error(
        post("/v1/completions", json={**TEXT, "prompt": ids, "max_tokens": 11}),
        400,
        "context_length_exceeded",
        "prompt",
    )
    fits = post("/v1/completions", json={**TEXT, "prompt": ids, "max_tokens": 10}).json()
    assert fits["usage"]["total_tokens"] == CONTEXT_TOKENS
    rest = post("/v1/completions", json={"model": "tiny", "prompt": ids, "temperature": 0}).json()
    assert rest["usage"]["completion_tokens"] <= 10


def test_a_body_too_large_is_refused_with_and_without_its_length(client):
    body = json.dumps({**TEXT, "prompt": "x" * 5000}).encode()
    headers = {"content-type": "application/json"}
    assert "4096 bytes" in error(
        client.post("/v1/completions", content=body, headers=headers), 413, "request_too_large"
    )
    pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
    error(client.post("/v1/completions", content=pieces, headers=headers), 413, "request_too_large")
    assert samples(client)['raytune_llm_refused_total{status="413"}'] >= 2


def test_keys(registry):
    client = client_of(make_replica(registry, ["wit"], key_hashes=(key_hash("one"), key_hash("two"))))
    assert client.get("/healthz").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer three"},
        {"authorization": "Basic one"},
        {"authorization": "Bearer "},
    ):
        error(client.get("/v1/models", headers=headers), 401, "invalid_api_key")
    for key in ("one", "two"):
        assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_an_answer_that_takes_too_long(registry):
    limits = Limits(**{**vars(LIMITS), "request_timeout_seconds": 0.001})
    client = client_of(make_replica(registry, ["wit"], limits=limits))
    error(client.post("/v1/completions", json=TEXT), 408, "request_timeout")
    found, is_done = events(client.post("/v1/completions", json={**TEXT, "stream": True}))
    assert found[-1]["error"]["code"] == "request_timeout" and not is_done
    assert client.get("/healthz").json()["running"] == 0


def test_a_failing_engine_is_error_500_without_its_insides(registry):
    replica = make_replica(registry, ["wit"])
    client = client_of(replica)
    replica._engine.close()
    for response in (client.post("/v1/completions", json=TEXT), client.get("/healthz")):
        assert "decoding" not in error(response, 500, "internal_error")
    found, _ = events(client.post("/v1/completions", json={**TEXT, "stream": True}))
    assert found[-1]["error"]["type"] == "server_error"


def test_a_version_that_cannot_be_loaded_is_left_out_and_reported(registry, tmp_path):
    base = make_base(tmp_path / "tiny")
    mine = Registry(str(tmp_path / "registry"))
    publish(mine, base, "good", write_adapter(base, tmp_path / "good", seed=1))
    version = publish(mine, base, "bad", write_adapter(base, tmp_path / "bad", seed=2))
    weights = tmp_path / "registry" / "bad" / f"v{version.number}" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    replica = make_replica(mine, ["good", "bad"])
    assert "not a whole safetensors file" in replica.refused()["bad@1"]
    client = client_of(replica)
    error(client.post("/v1/completions", json={**TEXT, "model": "bad"}), 404, "model_not_found", "model")
    assert client.post("/v1/completions", json={**TEXT, "model": "good"}).status_code == 200


def test_a_short_answer_does_not_wait_for_a_long_one(client, replica):
    """Tokens are decoded in turn, so the time to a short answer is a few steps, not the long answer's time."""
    import threading

    ended = []
    long = threading.Thread(
        target=lambda: (client.post("/v1/completions", json={**TEXT, "max_tokens": 64}), ended.append("long"))
    )
    long.start()
    while not replica._engine.num_running:
        time.sleep(0.001)
    client.post("/v1/completions", json={**TEXT, "max_tokens": 1})
    ended.append("short")
    long.join()
    assert ended[0] == "short"


def test_the_openapi_page_names_all_requests_and_needs_a_key_where_there_are_keys(client, registry):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"ChatRequest", "CompletionRequest", "ResponseRequest"} <= set(schemas)
    assert "swagger" in client.get("/docs").text
    guarded = client_of(make_replica(registry, ["wit"], key_hashes=(key_hash("one"),)))
    for path in ("/docs", "/openapi.json"):
        error(guarded.get(path), 401, "invalid_api_key")
        assert guarded.get(path, headers={"authorization": "Bearer one"}).status_code == 200


def text_of(client, model):
    return client.post("/v1/completions", json={**TEXT, "model": model}).json()["choices"][0]["text"]


def test_versions_are_loaded_and_unloaded_without_a_restart(growing, monkeypatch):
    monkeypatch.setattr(model_manager, "RETIRE_SECONDS", 0)
    registry, more = growing
    replica = make_replica(registry, ["wit"])
    client = client_of(replica)
    before = text_of(client, "wit@1")
    more("dry", 2)
    asyncio.run(replica.reconfigure({"versions": ["wit@1", "dry@1"]}))
    assert text_of(client, "wit@1") == before != text_of(client, "dry")

    async def only_dry():
        await replica.reconfigure({"versions": ["dry@1"]})
        await asyncio.gather(*replica._model_manager._retiring.values())

    asyncio.run(only_dry())
    error(client.post("/v1/completions", json=TEXT), 404, "model_not_found", "model")
    assert replica._engine._resident.adapter_cache.resident == ("dry@1",)
    asyncio.run(replica.reconfigure({"versions": ["dry@1", "wit@1"]}))
    assert text_of(client, "wit") == before
    replica.close()


def test_limits_per_key(registry):
    keys = {"key_hashes": (key_hash("one"), key_hash("two")), "requests_per_minute": 2}
    client = client_of(make_replica(registry, ["wit"], **keys))

    def ask(key):
        return client.post("/v1/completions", json=TEXT, headers={"authorization": f"Bearer {key}"})

    assert [ask("one").status_code for _ in range(2)] == [200, 200]
    refused = ask("one")
    assert "2 requests per minute" in error(refused, 429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert ask("two").status_code == 200


def samples(client):
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {
        re.sub(r',replica="[0-9a-f]+"|replica="[0-9a-f]+",?', "", name): float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines)
    }


def test_metrics_tell_of_each_version_and_never_of_what_was_sent(registry, caplog):
    replica = make_replica(registry, ["wit"])
    client = client_of(replica)
    secret = "a very secret sentence"
    with caplog.at_level("DEBUG"):
        client.post("/v1/completions", json={**TEXT, "prompt": secret})
        client.post("/v1/completions", json={**TEXT, "prompt": secret, "stream": True})
        client.post("/v1/completions", json={**TEXT, "prompt": secret, "model": secret})
        client.post("/v1/completions", json={**TEXT, "prompt": secret, "max_tokens": -1})
    found = samples(client)
    prompt_tokens = len(replica._model_manager._models["wit@1"].tokens.tokenizer(secret).input_ids)
    assert found['raytune_llm_requests_total{model="wit@1",outcome="length"}'] == 2
    assert found['raytune_llm_prompt_tokens_total{model="wit@1"}'] == 2 * prompt_tokens
    assert found['raytune_llm_completion_tokens_total{model="wit@1"}'] == 16
    assert found['raytune_llm_request_seconds_count{model="wit@1"}'] == 2
    assert found['raytune_llm_first_token_seconds_count{model="wit@1"}'] == 2
    assert found['raytune_llm_refused_total{status="404"}'] == found['raytune_llm_refused_total{status="400"}'] == 1
    assert found["raytune_llm_answers_open{}"] == found["raytune_llm_answers_waiting{}"] == 0
    assert found["raytune_llm_adapter_loads{}"] == found['raytune_llm_adapter_in_memory{model="wit@1"}'] == 1
    assert secret not in client.get("/metrics").text
    assert secret not in caplog.text


def test_the_openapi_page_holds_for_generated_requests(client):
    """Whatever is sent, the answer is JSON in OpenAI's shape and no server error."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/completions", "/v1/models"}
    for operation in operations:

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            response = case.call()
            assert response.status_code < 500, response.text
            assert response.status_code < 400 or set(response.json()) == {"error"}

        check()


def test_an_answer_is_as_long_as_the_cache_has_room_for(registry):
    token_bytes = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, fp32
    limits = replace(LIMITS, context_tokens=1000, max_tokens=500)
    replica = make_replica(registry, ["wit"], cache_bytes=128 * token_bytes, limits=limits)
    client = client_of(replica)
    ids = {"model": "tiny", "temperature": 0, "prompt": [5] * 120}
    message = error(
        client.post("/v1/completions", json={**ids, "max_tokens": 20}), 400, "context_length_exceeded", "prompt"
    )
    assert "the 128 tokens that this endpoint's memory has room for (serve.engine.cache_bytes)" in message
    error(client.post("/v1/completions", json={**ids, "prompt": [5] * 128}), 400, "context_length_exceeded", "prompt")
    assert client.post("/v1/completions", json=ids).json()["usage"]["completion_tokens"] <= 8
    assert client.post("/v1/completions", json={**ids, "max_tokens": 8}).status_code == 200
    replica.close()


def test_a_refusal_names_no_folder(registry):
    client = client_of(make_replica(registry, ["wit"], max_on_demand=2))
    message = error(client.post("/v1/completions", json={**TEXT, "model": "wit@9"}), 404, "model_not_found", "model")
    assert message == "wit@9 is not in registry: wit has versions 1; aliases: none"
    places = errors.ApiError(
        404, "s3://bucket/a/b.json of org/model, /home/me/c (v1/d), 'https://h/e' and/or f", code=None
    )
    assert errors.without_paths(places).message == "b.json of org/model, c (v1/d), 'e' and/or f"


def test_web_pages_of_other_origins_may_ask_where_they_are_named(registry):
    origin = {"origin": "https://example.org"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    keys = {"key_hashes": (key_hash("one"),)}
    client = client_of(make_replica(registry, ["wit"], cors_origins=("https://example.org",), **keys))
    asked = client.options("/v1/completions", headers=preflight)
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://example.org"
    answered = client.post("/v1/completions", json=TEXT, headers={**origin, "authorization": "Bearer one"})
    assert answered.status_code == 200 and answered.headers["access-control-allow-origin"] == "https://example.org"
    refused = client.post("/v1/completions", json=TEXT, headers=origin)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://example.org"
    assert client.options("/v1/completions", headers={**preflight, "origin": "https://evil.org"}).status_code == 400
    closed = client_of(make_replica(registry, ["wit"]))
    assert "access-control-allow-origin" not in closed.post("/v1/completions", json=TEXT, headers=origin).headers


def test_the_log_probabilities_of_a_prompt_are_the_models(client, registry):
    base = read_catalog(registry, ["wit"]).base
    ids = base.tokenizer()("Oh great, another meeting").input_ids
    with torch.inference_mode():
        logprobs = base.load()(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    ask = {"model": "tiny", "prompt": [ids, ids[:-2]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    whole, shorter = client.post("/v1/completions", json=ask).json()["choices"]
    assert whole["logprobs"]["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-4)
    assert shorter["logprobs"]["token_logprobs"][1:-1] == pytest.approx(own[:-2], abs=1e-4)
    assert len(whole["logprobs"]["tokens"]) == len(ids) + 1
