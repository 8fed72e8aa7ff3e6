"""The first engine: transformers on CPUs or one GPU, many adapters on one base in memory.

One thread owns the weights and decodes one token of each answer in turn, each with its own key-value cache, so a
short answer never waits for a long one. Greedy answers equal `generate`'s. Left out: answers that share a forward
pass (batching), paged caches, eviction of adapters.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import torch

from raytune_llm.job import InputError, require
from raytune_llm.models.base import Base
from raytune_llm.serving.engine import Delta, Engine, Sampling, ServedModel
from raytune_llm.serving.resident import Resident
from raytune_llm.serving.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """transformers in the replica's own process."""

    cpus_per_replica: float
    """CPUs that one replica reserves and computes with; > 0."""
    use_gpu: bool | None
    """One GPU per replica; null = when the cluster has any."""

    def __post_init__(self) -> None:
        require(self.cpus_per_replica > 0, "serve.engine.cpus_per_replica", self.cpus_per_replica, "> 0")

    def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
        if self.use_gpu and not cluster_has_gpu:
            raise InputError("serve.engine.use_gpu=true, but the cluster has no GPU; set it to null or false")
        gpus = 1.0 if (cluster_has_gpu if self.use_gpu is None else self.use_gpu) else 0.0
        return {"num_cpus": self.cpus_per_replica, "num_gpus": gpus}

    def load(self, base: Base, *, max_running: int) -> Engine:
        if torch.cuda.is_available() and self.use_gpu is not False:
            return LocalDecoder(base, device="cuda", max_running=max_running)
        torch.set_num_threads(max(1, int(self.cpus_per_replica)))
        return LocalDecoder(base, device="cpu", max_running=max_running)


class LocalDecoder:
    """The loaded engine."""

    def __init__(self, base: Base, *, device: str, max_running: int) -> None:
        self._resident = Resident(base, device)
        self._models: dict[str, ServedModel] = {}
        self._max_running = max_running
        self._waiting: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._running: list[Sequence] = []
        self._num_open = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._decode, name="decoder", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        return self._num_open

    def add(self, model: ServedModel) -> None:
        with self._lock:
            self._resident.add(model)
        self._models[model.id] = model

    async def generate(self, model: str, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        self.check_health()
        sequence = Sequence(self._models[model], prompt, sampling)
        self._waiting.put(sequence)
        self._num_open += 1
        try:
            while True:
                item = await sequence.deltas.get()
                if isinstance(item, Exception):
                    raise RuntimeError(f"decoding by {model} failed") from item
                yield item
                if item.finish is not None:
                    return
        finally:
            self._num_open -= 1
            sequence.cancelled = True

    def check_health(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the decoding thread has ended")

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _decode(self) -> None:
        with torch.inference_mode():
            while self._admit():
                for sequence in list(self._running):
                    if not self._advance(sequence):
                        self._running.remove(sequence)

    def _admit(self) -> bool:
        """Take in new answers, waiting for one when there is nothing to do; False when the engine was closed."""
        while len(self._running) < self._max_running:
            try:
                sequence = self._waiting.get(block=not self._running)
            except queue.Empty:
                return True
            if sequence is None:
                return False
            self._running.append(sequence)
        return True

    def _advance(self, sequence: Sequence) -> bool:
        """One token of one answer; whether there are more to come."""
        if sequence.cancelled:
            return False
        try:
            with self._lock:
                return sequence.step(self._resident.use(sequence.served.id))
        except Exception as error:  # whatever it is, it ends this answer and no other
            logger.exception("decoding by %s failed", sequence.served.id)
            sequence.fail(error)
            return False
