"""A client that leaves before Ray has delivered its request."""

import asyncio

from ray.exceptions import TaskCancelledError

from raytune_llm.serving.api.bounds import BoundsMiddleware
from raytune_llm.serving.deploy.left_clients import LeftClientsMiddleware


async def never(*_):
    raise AssertionError("nothing is answered or refused")


def through(app, receive):
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(LeftClientsMiddleware(app)(scope, receive, never))


async def cancelled():
    raise TaskCancelledError


def test_a_cancelled_receive_is_a_disconnect():
    found = []

    async def app(scope, receive, send):
        found.append(await receive())

    through(app, cancelled)
    assert found == [{"type": "http.disconnect"}]


def test_what_is_received_passes_unchanged():
    messages = [{"type": "http.request", "body": b"1", "more_body": True}, {"type": "http.disconnect"}]
    found, rest = [], iter(messages)

    async def app(scope, receive, send):
        found.extend([await receive(), await receive()])

    async def receive():
        return next(rest)

    through(app, receive)
    assert found == messages


def test_an_unfinished_body_whose_client_left_ends_without_an_error():
    bounds = BoundsMiddleware(
        never, max_body_bytes=100, body_timeout_seconds=5, request_timeout_seconds=5, refuse=lambda error: never
    )
    through(bounds, cancelled)
