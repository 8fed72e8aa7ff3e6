"""Continuous batching on transformers: many adapters on one base in memory.

One thread owns the weights. In each step the running answers of the base and of its LoRA adapters share one forward
pass, fully tuned models have a pass each, and answers that can't share one (DoRA, encoder-decoder bases) decode a
token in turn. Answers join between two steps, in turn among clients, where the cache has room for them. Greedy answers
equal those of `generate`. Left out: several GPUs.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from raytune_llm.errors import InputError
from raytune_llm.models.device_errors import is_device_lost
from raytune_llm.models.out_of_memory import is_out_of_memory
from raytune_llm.serving.engine.base import Delta, Sampling, ServedModel
from raytune_llm.serving.engine.batch import Batch
from raytune_llm.serving.engine.request import GenerationRequest, Outbox, check_length, check_tokens, out_of_memory
from raytune_llm.serving.engine.resident_models import Prepared, ResidentModels
from raytune_llm.serving.engine.rows import Rows
from raytune_llm.serving.engine.unbatched import Unbatched

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """A function that the decoding thread runs between two steps."""

    function: Callable[[], None]
    done: Future[None]


class LocalDecoder:
    """The loaded engine. Only the decoding thread touches the resident models."""

    def __init__(self, resident: ResidentModels, *, max_running: int) -> None:
        self._resident = resident
        self._models: dict[str, ServedModel] = {}
        self._max_running = max_running
        self._arrived: queue.SimpleQueue[GenerationRequest | _Call | None] = queue.SimpleQueue()
        self._waiting: deque[GenerationRequest] = deque()
        self._unbatched: list[Unbatched] = []
        self._retired: set[str] = set()
        self._outbox = Outbox()
        self._open: Counter[str] = Counter()
        """Answers that were asked for and haven't ended, by model."""
        self._has_ended = False
        self._thread = threading.Thread(target=self._decode, name="decoder", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        return self._open.total()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + self._arrived.qsize()

    @property
    def num_adapter_loads(self) -> int:
        return self._resident.num_loads

    def add(self, model: ServedModel) -> None:
        prepared = self._resident.prepare(model)
        self._between_steps(lambda: self._install(prepared))
        self._models[model.id] = model

    def remove(self, id: str) -> None:
        del self._models[id]
        self._between_steps(lambda: self._retire(id))

    def adapters_in_memory(self) -> list[str]:
        return self._resident.adapters_in_memory

    def is_cold(self, id: str) -> bool:
        return self._resident.is_cold(id)

    def num_adapted_modules(self, id: str) -> int:
        return self._resident.num_adapted_modules[id]

    def references(self, model: ServedModel) -> tuple[Any, Any]:
        return self._resident.references(model)

    def longest_answer(self, id: str) -> int | None:
        batch = self._resident.batch(id)
        return None if batch is None else batch.longest

    async def generate(
        self, model: str, prompt: list[int], sampling: Sampling, client: str = ""
    ) -> AsyncGenerator[Delta, None]:
        self.check_health()
        self._open[model] += 1  # before it is looked up: a model in use isn't unloaded
        request = None
        try:
            request = self._request(model, prompt, sampling, client)
            await request.compile()
            if self.is_cold(model):
                request.weights = await asyncio.to_thread(self._resident.read, model)
            self._put(request)
            while True:
                item = await request.next()
                if isinstance(item, InputError):
                    raise item
                if isinstance(item, Exception):
                    raise RuntimeError(f"decoding by {model} failed") from item
                yield item
                if item.finish is not None:
                    return
        finally:
            self._open[model] -= 1
            if request is not None:
                request.cancelled = True
            if model in self._retired:
                self._arrived.put(_Call(self._remove_retired, Future()))

    def _request(self, model: str, prompt: list[int], sampling: Sampling, client: str) -> GenerationRequest:
        """Raises InputError for what this model can't answer."""
        served = self._models.get(model)
        if served is None:
            raise InputError(f"{model} has just been unloaded; ask again")
        check_length(self.longest_answer(model), len(prompt), sampling.max_tokens)
        check_tokens(self._resident.vocabulary_size, prompt, sampling)
        return GenerationRequest(served, prompt, sampling, self._outbox, client)

    def check_health(self) -> None:
        if self._has_ended or not self._thread.is_alive():
            raise RuntimeError("the decoding thread has ended")

    def close(self) -> None:
        self._arrived.put(None)
        self._thread.join()

    def _between_steps(self, function: Callable[[], None]) -> None:
        """Run a function in the decoding thread; returns when it has run, or raises its error."""
        self.check_health()
        call = _Call(function, Future())
        self._put(call)
        call.done.result()

    def _put(self, item: GenerationRequest | _Call) -> None:
        """Pass something to the decoding thread. Raises RuntimeError when that has ended."""
        self._arrived.put(item)
        self.check_health()  # after the queue: what arrives there too late would wait for ever

    def _install(self, prepared: Prepared) -> None:
        if prepared.served.id in self._retired:  # requested again; a version never changes
            self._retired.remove(prepared.served.id)
        else:
            self._resident.install(prepared)

    def _retire(self, id: str) -> None:
        self._retired.add(id)
        self._remove_retired()

    def _decode(self) -> None:
        error = RuntimeError("the engine was closed")
        try:
            self._decode_until_closed()
        except Exception as cause:  # the thread ends, which check_health reports
            logger.exception("decoding has failed for good")
            error = RuntimeError(f"decoding has failed for good: {cause}")
        finally:
            self._fail_all(error)

    def _decode_until_closed(self) -> None:
        with torch.inference_mode():
            while self._receive():
                self._admit()
                for batch in self._resident.batches:
                    self._step(batch)
                self._step_unbatched()
                self._outbox.flush()
                if self._retired:
                    self._remove_retired()

    def _fail_all(self, error: Exception) -> None:
        """End every request and call, so that none waits for a thread that has ended."""
        self._has_ended = True
        self._waiting += self._decoding
        while not self._arrived.empty():
            item = self._arrived.get()
            if isinstance(item, _Call):
                item.done.set_exception(error)
            elif item is not None:
                self._waiting.append(item)
        for request in self._waiting:
            request.fail(error)
        self._outbox.flush()

    @property
    def _decoding(self) -> list[GenerationRequest]:
        batched = [request for batch in self._resident.batches for request in batch.requests]
        return batched + [answer.request for answer in self._unbatched]

    @property
    def _num_decoding(self) -> int:
        return len(self._unbatched) + sum(len(batch) for batch in self._resident.batches)

    def _receive(self) -> bool:
        """Take in arrived requests and calls, waiting for one when idle; returns False when the engine was closed."""
        while True:
            try:
                item = self._arrived.get(block=not self._waiting and not self._num_decoding)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Call):
                try:
                    item.function()
                except Exception as error:  # raised in the calling thread by its future
                    item.done.set_exception(error)
                else:
                    item.done.set_result(None)
            else:
                self._waiting.append(item)

    def _admit(self) -> None:
        """Start waiting answers while there are places, room in the cache, and rows for their adapters."""
        if not self._waiting:
            return
        places = self._max_running - self._num_decoding
        still_waiting: deque[GenerationRequest] = deque()
        full: set[Batch] = set()
        for request in self._in_turn():
            if request.cancelled:
                continue
            id = request.served.id
            batch = self._resident.batch(id)
            try:
                if places <= 0 or batch in full or not self._acquire(request, batch, full):
                    still_waiting.append(request)
                    continue
                self._start(request, batch)
            except Exception as error:  # any failure ends only this answer
                logger.exception("an answer by %s could not be started", id)
                request.fail(error)
                continue
            places -= 1
        self._waiting = still_waiting

    def _in_turn(self) -> list[GenerationRequest]:
        """Waiting requests, those of the client first that has the fewest answers running or waiting before them."""
        count = Counter(request.client for request in self._decoding)
        turns = []
        for request in self._waiting:
            turns.append((count[request.client], request))
            count[request.client] += 1
        return [request for _, request in sorted(turns, key=itemgetter(0))]

    def _start(self, request: GenerationRequest, batch: Batch | None) -> None:
        id = request.served.id
        is_stacked = self._resident.is_stacked(id)
        try:
            if batch is None:
                self._unbatched.append(Unbatched(request))
            else:
                batch.add(request, id if is_stacked else None)
        except Exception:
            self._release([request])
            raise

    def _acquire(self, request: GenerationRequest, batch: Batch | None, full: set[Batch]) -> bool:
        """Reserve what an answer needs of its batch, and its adapter's row; False when it has to wait."""
        id = request.served.id
        if batch is not None and not batch.has_room(request):
            full.add(batch)  # shorter ones that arrived later wait too, or a long one might never start
            return False
        return not self._resident.is_stacked(id) or self._resident.acquire(id, request.weights)

    def _step(self, batch: Batch) -> None:
        """One more token for each answer whose prompt is read, then a chunk of the prompts that aren't."""
        self._release(batch.drop_cancelled())
        for rows in batch.rows:
            if len(rows):
                self._step_rows(batch, rows)
        self._outbox.flush()  # streams needn't wait for the chunk
        self._release(batch.read())

    def _step_rows(self, batch: Batch, rows: Rows) -> None:
        try:
            self._release(rows.step())
            return
        except Exception as error:  # any failure ends only answers of these rows
            if is_device_lost(error):
                raise
            if not is_out_of_memory(error):
                logger.exception("a step of %d answers failed", len(rows))
                for request in rows.requests:
                    request.fail(error)
                self._release(rows.clear())
                return
            evicted = out_of_memory(error)
        # only here does no traceback hold the failed step's tensors
        if not batch.give_back():
            logger.warning("no memory for a step of %d answers; the longest is evicted: %s", len(rows), evicted)
            self._release(rows.evict(evicted))

    def _step_unbatched(self) -> None:
        for answer in list(self._unbatched):
            request = answer.request
            try:
                needs_more = not request.cancelled and answer.step(self._resident.use(request.served.id))
            except Exception as error:  # any failure ends only this answer
                if not isinstance(error, InputError):
                    logger.exception("decoding by %s failed", request.served.id)
                request.fail(error)
                needs_more = False
            if not needs_more:
                self._unbatched.remove(answer)

    def _release(self, ended: list[GenerationRequest]) -> None:
        for request in ended:
            if self._resident.is_stacked(request.served.id):
                self._resident.release(request.served.id)

    def _remove_retired(self) -> None:
        """Drop the removed models that no answer needs any more."""
        busy = {request.served.id for request in (*self._decoding, *self._waiting)}
        busy |= {id for id in self._retired if self._open[id]}
        for id in self._retired - busy:
            self._resident.remove(id)
            self._retired.remove(id)
