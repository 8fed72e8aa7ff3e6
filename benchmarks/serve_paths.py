"""The ways to one engine, for benchmarks/serve.py: in this process, behind only uvicorn, by a Ray Serve handle, and
through Ray Serve's HTTP proxy. The clients read raw events, so that little of what is measured is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import ray
import uvicorn
from ray import serve as ray_serve

from raytune_llm import cluster, session
from raytune_llm.jobs import config
from raytune_llm.serving.api.lengths import Limits
from raytune_llm.serving.api.rate_limit import KeyLimits
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.serving.deploy import endpoint
from raytune_llm.serving.deploy.application import APPLICATION, DEPLOYMENT
from raytune_llm.serving.deploy.replica import Plan, Replica
from raytune_llm.serving.engine.base import Sampling
from raytune_llm.stores.registry import Registry

READY_WITHIN_SECONDS = 120.0
Ask = Callable[[int, bool], Awaitable[float]]
"""Request number, streamed or not → seconds to its first token (to its end when it isn't streamed)."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def by_http(url: str, models: Sequence[str], texts: Sequence[str], num_tokens: int) -> Ask:
    """Asks an endpoint for text completions."""

    async def ask(i: int, stream: bool) -> float:
        body = {
            "model": models[i % len(models)],
            "prompt": texts[i],
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
        begun, first, lines = time.perf_counter(), 0.0, []
        async with (
            httpx.AsyncClient(timeout=120) as client,
            client.stream("POST", f"{url}/completions", json=body) as response,
        ):
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                first = first or time.perf_counter() - begun
                lines.append(line)
        assert stream or json.loads("".join(lines))["usage"]["completion_tokens"] == num_tokens, "an early end"
        return first

    return ask


def by_handle(models: Sequence[str], prompts: Sequence[list[int]], sampling: Callable[[bool], Sampling]) -> Ask:
    """Asks a replica through Ray Serve's router, without HTTP."""
    handle = ray_serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    answers = handle.options(method_name="answer", stream=True)

    async def ask(i: int, stream: bool) -> float:
        begun, first, count = time.perf_counter(), 0.0, 0
        asked = sampling(stream)
        deltas: AsyncIterator[Any] = answers.remote(models[i % len(models)], prompts[i], asked)
        async for delta in deltas:
            first = first or time.perf_counter() - begun
            count += delta.num_tokens
        assert count == asked.max_tokens, "an early end"
        return first

    return ask


def all_at_once(ask: Ask, count: int, *, stream: bool) -> list[float]:
    """So many requests together; what each took."""

    async def run() -> list[float]:
        return list(await asyncio.gather(*(ask(i, stream) for i in range(count))))

    return asyncio.run(run())


@contextlib.contextmanager
def behind_uvicorn(registry_dir: str, references: Sequence[str]) -> Iterator[str]:
    """One replica's app in a process of its own, without Ray; its URL."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_uvicorn, args=(port, registry_dir, list(references)))
    process.start()
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > deadline or not process.is_alive():
                    raise
                time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.join()


def _uvicorn(port: int, registry_dir: str, references: list[str]) -> None:
    serve = config.load("serve", ["adapter=any"]).serve
    catalog = read_catalog(Registry(registry_dir), references)
    limits = Limits(
        max_tokens=serve.max_tokens,
        context_tokens=catalog.base.facts.context_tokens,
        shares_context=True,
        request_timeout_seconds=serve.request_timeout_seconds,
        max_body_bytes=serve.max_body_bytes,
    )
    replica = Replica(
        Plan(
            catalog=catalog,
            registry_dir=registry_dir,
            engine=serve.engine,
            limits=limits,
            max_running=serve.max_concurrent_requests,
            key_hashes=(),
            key_limits=KeyLimits(None, None),
            max_on_demand=0,
        )
    )
    asyncio.run(replica.reconfigure({"versions": references}))
    assert not replica.refused(), json.dumps(replica.refused())
    uvicorn.run(replica.__serve_build_asgi_app__(), host="127.0.0.1", port=port, log_level="warning")


@contextlib.contextmanager
def on_ray_serve(registry_dir: str, references: Sequence[str]) -> Iterator[str]:
    """The endpoint as jobs/serve.py starts it; its URL."""
    cluster.set_environment()
    session.begin(dashboard=False, num_cpus=2)
    try:
        serve = config.load("serve", ["adapter=any", f"serve.port={free_port()}"]).serve
        yield endpoint.start(serve, registry_dir, references).url
        endpoint.drain()
    finally:
        ray.shutdown()
