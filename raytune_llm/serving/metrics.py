"""What a replica counts, in Prometheus' text format; models are named by version, never by what a client wrote.

With several replicas each answers for itself (label `replica`), and a scrape reaches one of them: sum over replicas
and let the scraper ask often.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from raytune_llm.serving.engine import Delta, Engine
from raytune_llm.serving.errors import ApiError

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms of one replica."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        labels = ("replica", "model")
        self._requests = self._counter("requests", "Answers, by how they ended", (*labels, "outcome"))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read", labels)
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated", labels)
        self._refused = self._counter("refused", "Requests refused before decoding, by status", ("replica", "status"))
        self._seconds = self._histogram("request_seconds", "From request to last token", labels)
        self._first_seconds = self._histogram("first_token_seconds", "From request to first token", labels)
        self._open = self._gauge("answers_open", "Answers being decoded or waiting for it")
        self._waiting = self._gauge("answers_waiting", "Answers waiting for a place")
        self._loads = self._gauge("adapter_loads", "Times an adapter was put into memory")

    def refused(self, status: int) -> None:
        self._refused.labels(self._replica, str(status)).inc()

    async def metered(
        self, model: str, prompt_tokens: int, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """The deltas, counted; an answer that its client left is `cancelled`."""
        labels, begun, outcome, is_first = (self._replica, model), time.perf_counter(), "cancelled", True
        self._prompt_tokens.labels(*labels).inc(prompt_tokens)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    if is_first:
                        self._first_seconds.labels(*labels).observe(time.perf_counter() - begun)
                        is_first = False
                    self._completion_tokens.labels(*labels).inc(delta.num_tokens)
                    if delta.finish is not None:
                        outcome = delta.finish.value
                    yield delta
        except ApiError as error:
            outcome = str(error.status)
            raise
        except RuntimeError:
            outcome = "500"
            raise
        finally:
            self._requests.labels(*labels, outcome).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - begun)

    def text(self, engine: Engine) -> bytes:
        """All of them, now."""
        self._open.labels(self._replica).set(engine.num_running)
        self._waiting.labels(self._replica).set(engine.num_waiting)
        self._loads.labels(self._replica).set(engine.num_adapter_loads)
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"raytune_llm_{name}", meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"raytune_llm_{name}", meaning, labels, registry=self._registry, buckets=SECONDS)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"raytune_llm_{name}", meaning, ("replica",), registry=self._registry)
