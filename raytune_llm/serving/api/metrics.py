"""A replica's metrics in Prometheus' text format; models are labelled by version, never by client input.

A scrape reaches one replica, which returns the metrics of all of them (label `replica`): sum over replicas.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.engine.base import Delta, Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms of one replica."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        labels = ("replica", "model")
        self._requests = self._counter("requests", "Answers by finish reason or error status", (*labels, "outcome"))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read", labels)
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated", labels)
        self._refused = self._counter("refused", "Requests refused before decoding, by status", ("replica", "status"))
        self._forwarded = self._counter(
            "handed_over", "Requests forwarded to a replica that had the adapter in memory", labels
        )
        self._seconds = self._histogram("request_seconds", "From request to last token", labels)
        self._first_seconds = self._histogram("first_token_seconds", "From request to first token", labels)
        self._open = self._gauge("answers_open", "Answers being decoded or waiting for it")
        self._waiting = self._gauge("answers_waiting", "Answers waiting for a place")
        self._in_memory = Gauge(
            "raytune_llm_adapter_in_memory", "1 for each adapter in memory", labels, registry=self._registry
        )
        self._loads = self._gauge("adapter_loads", "Times an adapter was put into memory")
        self._versions_refused = Gauge(
            "raytune_llm_version_refused", "1 for each version that can't be served", labels, registry=self._registry
        )

    def refused(self, status: int) -> None:
        self._refused.labels(self._replica, str(status)).inc()

    def versions_refused(self, ids: Iterable[str]) -> None:
        """These are all that can't be served now."""
        self._versions_refused.clear()
        for id in ids:
            self._versions_refused.labels(self._replica, id).set(1)

    def forwarded(self, model: str) -> None:
        self._forwarded.labels(self._replica, model).inc()

    async def counted(
        self, model: str, prompt_tokens: int, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """Count the deltas that pass; an answer whose client disconnected is counted as `cancelled`."""
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
        except Exception:
            outcome = "500"
            raise
        finally:
            self._requests.labels(*labels, outcome).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - begun)

    def families(self, engine: Engine) -> list[Metric]:
        """Their present values."""
        self._open.labels(self._replica).set(engine.num_running)
        self._waiting.labels(self._replica).set(engine.num_waiting)
        self._loads.labels(self._replica).set(engine.num_adapter_loads)
        self._in_memory.clear()
        for model in engine.adapters_in_memory():
            self._in_memory.labels(self._replica, model).set(1)
        return list(self._registry.collect())

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"raytune_llm_{name}", meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"raytune_llm_{name}", meaning, labels, registry=self._registry, buckets=SECONDS)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"raytune_llm_{name}", meaning, ("replica",), registry=self._registry)


class Merged(Collector):
    """Metric families of several replicas, merged by name."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families: dict[str, Metric] = {}
        for family in families:
            whole = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples.extend(family.samples)

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()

    def text(self) -> bytes:
        """Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
