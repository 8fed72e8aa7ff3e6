"""What a stranger may do to a replica: slow bodies, too many requests, wrong keys, long prompts, large headers."""

import asyncio
import logging
import re
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from serving_world import make_base, publish, write_adapter
from test_app import LIMITS, TEXT, client_of, error, make_replica, samples

from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.api.wrong_keys import WrongKeys
from raytune_llm.serving.engine.base import Delta, Finish
from raytune_llm.stores.registry import Registry

URL = "/v1/completions"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "registry"))
    publish(registry, base, "wit", write_adapter(base, root / "wit", seed=1))
    return registry


def replica_of(registry, **limits):
    return make_replica(registry, ["wit"], limits=replace(LIMITS, **limits))


@asynccontextmanager
async def clients(replica):
    """A client of the app in this event loop."""
    transport = httpx.ASGITransport(replica.__serve_build_asgi_app__(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=30) as client:
        yield client


class Held:
    """An engine's `generate` whose answers wait until they may end."""

    def __init__(self, replica):
        self.may_end, self.num_begun = asyncio.Event(), 0
        replica._service.generate = self

    async def __call__(self, model, prompt, sampling, client):
        self.num_begun += 1
        await self.may_end.wait()
        yield Delta("ok", 1, finish=Finish.stop)

    async def begun(self, count):
        async with asyncio.timeout(10):
            while self.num_begun < count:
                await asyncio.sleep(0.001)


async def never_ending():
    yield b"{"
    await asyncio.sleep(60)


def test_a_body_that_never_arrives_is_answered_408_and_keeps_no_place(registry):
    replica = replica_of(registry, body_timeout_seconds=0.5, max_open_requests=1)

    async def run():
        async with clients(replica) as client:
            slow = [asyncio.create_task(client.post(URL, content=never_ending())) for _ in range(25)]
            await asyncio.sleep(0.1)
            assert (await client.get("/healthz")).json()["status"] == "ok"
            assert (await client.post(URL, json=TEXT)).status_code == 200
            assert not any(task.done() for task in slow)
            for response in await asyncio.gather(*slow):
                assert error(response, 408, "request_timeout") == "the request's body did not arrive within 0.5 seconds"
                assert response.headers["connection"] == "close"

    asyncio.run(run())
    assert samples(client_of(replica))['raytune_llm_refused_total{status="408"}'] == 25
    replica.close()


def test_requests_beyond_the_waiting_ones_are_answered_503_and_health_never_waits(registry):
    replica = replica_of(registry, max_open_requests=3)

    async def run():
        held = Held(replica)
        async with clients(replica) as client:
            open_ones = [asyncio.create_task(client.post(URL, json=TEXT)) for _ in range(3)]
            await asyncio.sleep(0.1)
            refused = await client.post(URL, json=TEXT)
            assert error(refused, 503, "overloaded") == (
                "too many requests are waiting at this endpoint; try again in 2 s"
            )
            assert refused.headers["retry-after"] == "2" and refused.json()["error"]["type"] == "server_error"
            for path in ("/healthz", "/metrics", "/v1/models"):
                assert (await client.get(path)).status_code == 200
            held.may_end.set()
            assert [response.status_code for response in await asyncio.gather(*open_ones)] == [200] * 3
            assert (await client.post(URL, json=TEXT)).status_code == 200

    asyncio.run(run())
    assert samples(client_of(replica))['raytune_llm_refused_total{status="503"}'] == 1
    replica.close()


def test_the_time_limit_includes_what_precedes_decoding(registry):
    replica = replica_of(registry, request_timeout_seconds=0.2)

    async def slow_find(name):
        await asyncio.sleep(60)

    replica._service.models.find = slow_find
    client = client_of(replica)
    assert error(client.post(URL, json=TEXT), 408, "request_timeout") == (
        "the request took longer than 0.2 seconds, waiting included; try again later"
    )
    replica.close()


def test_a_long_prompt_is_encoded_while_health_is_answered(registry):
    limits = replace(LIMITS, max_body_bytes=1_000_000, context_tokens=1_000_000)
    replica = make_replica(registry, ["wit"], limits=limits, cache_bytes=100_000)

    async def run():
        async with clients(replica) as client:
            long = asyncio.create_task(client.post(URL, json={**TEXT, "prompt": "Miss the bus " * 70_000}))
            await asyncio.sleep(0.1)
            assert (await client.get("/healthz")).status_code == 200
            assert not long.done()
            error(await long, 400, "context_length_exceeded", "prompt")

    asyncio.run(run())
    replica.close()


def test_a_text_far_beyond_the_context_is_encoded_only_to_there(registry):
    replica = replica_of(registry, max_body_bytes=1_000_000)
    client, text = client_of(replica), "Miss the bus " * 70_000
    for path, ask, param in (
        (URL, {**TEXT, "prompt": text}, "prompt"),
        ("/v1/chat/completions", {"model": "wit", "messages": [{"role": "user", "content": text}]}, "messages"),
    ):
        message = error(client.post(path, json=ask), 400, "context_length_exceeded", param)
        count = int(re.fullmatch(r"this model's context is 128 tokens; .* has more than (\d+); shorten .*", message)[1])
        assert 128 < count < 1024
    replica.close()


def test_large_headers_are_refused(registry):
    replica = replica_of(registry)
    client = client_of(replica)
    large = client.get("/healthz", headers={"x-large": "x" * 40_000})
    assert "more than 32768" in error(large, 431, "headers_too_large")
    assert "more than 32768" in error(client.get("/healthz", params={"q": "x" * 40_000}), 431, "headers_too_large")
    assert client.get("/healthz", headers={"x-large": "x" * 30_000}).status_code == 200
    replica.close()


def test_wrong_keys_are_counted_limited_and_logged_without_the_key(registry, caplog):
    replica = make_replica(registry, ["wit"], key_hashes=(key_hash("right"),))
    client = client_of(replica)

    def get(key):
        return client.get("/v1/models", headers={"authorization": f"Bearer {key}"})

    with caplog.at_level(logging.WARNING):
        statuses = [get(f"guess{i}").status_code for i in range(30)]
    assert statuses == [401] * 20 + [429] * 10
    refused = get("guess")
    assert "more than 20 wrong API keys a minute from this address" in error(refused, 429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60 and refused.headers["connection"] == "close"
    assert get("right").status_code == 200
    lines = [record.getMessage() for record in caplog.records if "API key" in record.getMessage()]
    assert lines == ["wrong API keys: 1, the last from testclient"]
    assert "guess" not in caplog.text
    metrics = client.get("/metrics", headers={"authorization": "Bearer right"}).text
    assert 'status="401"} 20.0' in metrics and 'status="429"} 11.0' in metrics
    replica.close()


def test_wrong_keys_of_one_address_dont_limit_another_and_are_forgotten(caplog):
    now = [0.0]
    wrong = WrongKeys(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        assert [wrong.refusal("a").status for _ in range(21)][-2:] == [401, 429]
        assert wrong.refusal("b").status == 401
        now[0] = 59.5
        assert wrong.refusal("a").headers["retry-after"] == "1"
        now[0] = 60.0
        assert wrong.refusal("a").status == 401
    assert caplog.messages == [f"wrong API keys: {count}, the last from a" for count in (1, 23)]
    for i in range(20_000):
        wrong.refusal(str(i))
    assert len(wrong._windows) == 10_000


def test_answers_count_as_places_also_in_a_burst_and_one_request_leaves_room_for_others(registry):
    replica = replica_of(registry, max_open_requests=8)

    async def run():
        held = Held(replica)
        async with clients(replica) as client:
            many = asyncio.create_task(client.post(URL, json={**TEXT, "n": 9}))
            await held.begun(9)
            burst = [asyncio.create_task(client.post(URL, json={**TEXT, "n": 2})) for _ in range(4)]
            await held.begun(15)
            done, still = await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
            assert [response.result().status_code for response in done] == [503] and len(still) == 3
            error(await client.post(URL, json=TEXT), 503, "overloaded")
            held.may_end.set()
            assert len((await many).json()["choices"]) == 9
            assert [len((await task).json()["choices"]) for task in still] == [2] * 3
            assert len((await client.post(URL, json={**TEXT, "n": 100})).json()["choices"]) == 100

    asyncio.run(run())
    replica.close()


def test_places_are_free_again_whatever_ends_a_request(registry):
    replica = replica_of(registry, max_open_requests=2)

    async def run():
        async with clients(replica) as client:
            error(
                await client.post(URL, json={**TEXT, "prompt": ["a", "b " * 200]}),
                400,
                "context_length_exceeded",
                "prompt",
            )
            held = Held(replica)
            left = [asyncio.create_task(client.post(URL, json={**TEXT, "stream": True})) for _ in range(2)]
            await held.begun(2)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            held.may_end.set()
            both = [client.post(URL, json=TEXT) for _ in range(2)]
            assert [response.status_code for response in await asyncio.gather(*both)] == [200] * 2

    asyncio.run(run())
    replica.close()


def test_one_of_several_keys_leaves_places_to_the_others(registry):
    limits = replace(LIMITS, max_open_requests=4)
    for keys, most in ((("one", "two"), 3), (("one",), 4)):
        replica = make_replica(registry, ["wit"], limits=limits, key_hashes=tuple(map(key_hash, keys)))

        async def run(replica=replica, keys=keys, most=most):
            held = Held(replica)
            async with clients(replica) as client:

                def ask(key):
                    return client.post(URL, json=TEXT, headers={"authorization": f"Bearer {key}"})

                tasks = [asyncio.create_task(ask("one")) for _ in range(most)]
                await held.begun(most)
                refused = await ask("one")
                message = error(refused, 503, "overloaded")
                assert refused.headers["retry-after"] == "2"
                if "two" in keys:
                    assert message == "this key has as many open requests here as one key may have; try again in 2 s"
                    tasks.append(asyncio.create_task(ask("two")))
                    await held.begun(4)
                held.may_end.set()
                assert [response.status_code for response in await asyncio.gather(*tasks)] == [200] * 4

        asyncio.run(run())
        replica.close()
