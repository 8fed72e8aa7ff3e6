"""Ray Serve's proxy as a stranger meets it, without Ray: its middleware, and connections whose clients don't read."""

import asyncio

import httpx
from ray.serve._private import constants
from ray.serve._private.http_util import parse_disconnect_disabled_header, parse_request_timeout_header
from uvicorn import Config
from uvicorn.server import ServerState

from raytune_llm.serving.deploy import connections, front


def test_headers_that_are_orders_to_ray_do_not_reach_it():
    seen = []

    async def proxy(scope, receive, send):
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    orders = {
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER: "?1",
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER: "0",
        constants.SERVE_MULTIPLEXED_MODEL_ID: "someone",
        "Serve-Multiplexed-Model-Id": "someone",
        "authorization": "Bearer a",
    }

    async def run():
        transport = httpx.ASGITransport(front.ProxyFront(proxy))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get("/healthz", headers=orders)).text

    assert asyncio.run(run()) == "ok"
    assert parse_disconnect_disabled_header(dict(seen)) is False
    assert parse_request_timeout_header(dict(seen), 120.0) == 120.0
    assert not any(b"multiplexed" in name for name, _ in seen)
    assert (b"authorization", b"Bearer a") in seen


def test_a_client_that_does_not_read_is_disconnected_and_a_slow_one_is_not(monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    large = b"x" * 2**22

    async def run():
        left = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(64 if scope["path"] == "/endless" else 4):
                await send({"type": "http.response.body", "body": large, "more_body": True})
            await send({"type": "http.response.body"})
            if (await receive())["type"] == "http.disconnect" and scope["path"] == "/endless":
                left.set()

        config, state, loop = Config(app, log_config=None, lifespan="off"), ServerState(), asyncio.get_running_loop()
        config.load()
        server = await loop.create_server(
            lambda: connections.BoundedConnection(config, state, {}, _loop=loop), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        _, silent = await asyncio.open_connection(*address, limit=2**16)
        reader, slow = await asyncio.open_connection(*address, limit=2**16)
        silent.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.write(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        num_read = 0
        while piece := await reader.read(2**18):
            num_read += len(piece)
            await asyncio.sleep(0.02)
        assert num_read > 4 * len(large)
        await asyncio.wait_for(left.wait(), 5)
        assert not state.connections
        silent.transport.abort()
        slow.close()
        server.close()

    asyncio.run(run())
