"""One answer as its client sees it: its text so far, when it ends, and the queue that the client waits at.

Made in the client's event loop, then filled in the engine's thread; both share only `deltas` and `cancelled`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Delta, Finish, Sampling, ServedModel, TokenLogprob
from raytune_llm.serving.engine.detokenize import make_detokenizer
from raytune_llm.serving.engine.grammar import Grammar
from raytune_llm.serving.engine.schema_checks import grammar_of
from raytune_llm.serving.engine.stop_strings import StopStrings

Queue = asyncio.Queue[Delta | Exception]


class Outbox:
    """What a decoding step produces, delivered to each event loop in one call."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Queue, Delta | Exception]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, queue: Queue, item: Delta | Exception) -> None:
        self._items.setdefault(loop, []).append((queue, item))

    def flush(self) -> None:
        items, self._items = self._items, {}
        for loop, every in items.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, every)


def _deliver(every: list[tuple[Queue, Delta | Exception]]) -> None:
    for queue, item in every:
        queue.put_nowait(item)


class GenerationRequest:
    """`add_token` is called in the engine's thread until it returns False."""

    def __init__(
        self, served: ServedModel, prompt: list[int], sampling: Sampling, outbox: Outbox, client: str = ""
    ) -> None:
        self.served = served
        self.prompt = prompt
        self.sampling = sampling
        self.client = client
        self.tokenizer: Any = served.tokens.tokenizer
        self.cancelled = False
        self.weights: dict[str, Any] | None = None
        """Of its adapter, where they had to be read again."""
        self.grammar: Grammar | None = None
        """Of its JSON schema."""
        self.deltas: Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        # a grammar allows an end token only where nothing else need follow
        is_endless = sampling.ignore_eos and sampling.json_schema is None
        self._stop_ids = frozenset(() if is_endless else served.stop_ids)
        self._detokenizer = make_detokenizer(self.tokenizer)
        self._stop = StopStrings(sampling.stop)
        self._num_tokens = 0
        self._pending_logprobs: list[TokenLogprob] = []
        self._num_pending = 0
        """Tokens since the last delta."""
        self._pending_text: list[str] = []
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        """Returned with the first delta."""

    async def compile(self) -> None:
        """Make the grammar of its JSON schema, if it has one, in a thread. Raises as `grammar_of`."""
        if self.sampling.json_schema is not None:
            self.grammar = await grammar_of(self.tokenizer, self.sampling.json_schema, self.served.stop_ids)

    @property
    def num_tokens(self) -> int:
        """Most tokens that it may have, its prompt included."""
        return len(self.prompt) + self.sampling.max_tokens

    def add_token(self, token: int, logprob: TokenLogprob | None) -> bool:
        """One more token; returns whether the answer needs more."""
        if self.sampling.max_tokens == 0:
            return self._finish(Finish.length, "")
        if token in self._stop_ids:
            return self._finish(Finish.stop, "")
        self._num_tokens += 1
        self._num_pending += 1
        if logprob is not None:
            self._pending_logprobs.append(logprob)
        is_last = self._num_tokens == self.sampling.max_tokens
        if not self.sampling.stream and not self.sampling.stop:
            self._detokenizer.keep(token)
            return self._finish(Finish.length, "") if is_last else True
        text, stopped = self._stop.add(self._detokenizer.add(token))
        if stopped:
            self._emit(text, Finish.stop)
            return False
        if is_last:
            return self._finish(Finish.length, text)
        if text and self.sampling.stream:
            self._emit(text)
        elif text:
            self._pending_text.append(text)
        return True

    async def next(self) -> Delta | Exception:
        """What has come since the last call, in one: a client that is slower than the decoding gets more at a time."""
        item = await self.deltas.get()
        while isinstance(item, Delta) and not self.deltas.empty():
            following = self.deltas.get_nowait()
            if isinstance(following, Exception):
                return following
            item = item.joined(following)
        return item

    def fail(self, error: Exception) -> None:
        """End the answer with an exception."""
        self._outbox.put(self._loop, self.deltas, error)

    def _finish(self, finish: Finish, text: str) -> bool:
        """The last delta: `text`, then what was kept back, unless a stop string ended the answer."""
        rest, stopped = self._stop.add(self._detokenizer.flush())
        self._emit(text + rest + ("" if stopped else self._stop.flush()), Finish.stop if stopped else finish)
        return False

    def _emit(self, text: str, finish: Finish | None = None) -> None:
        whole = "".join([*self._pending_text, text])
        delta = Delta(whole, self._num_pending, tuple(self._pending_logprobs), finish, self.prompt_logprobs)
        self._outbox.put(self._loop, self.deltas, delta)
        self._pending_text, self._pending_logprobs, self._num_pending, self.prompt_logprobs = [], [], 0, ()


def check_length(longest: int | None, prompt_tokens: int, max_tokens: int) -> None:
    """Raises InputError for an answer that even an empty cache has no room for; longest as of `longest_answer`."""
    if longest is not None and prompt_tokens + max_tokens > longest:
        raise InputError(
            f"the prompt's {prompt_tokens} tokens and max_tokens={max_tokens} are more than the {longest} tokens that "
            "serve.engine.cache_bytes has room for; shorten the prompt, lower max_tokens, or raise that"
        )


def check_tokens(vocabulary_size: int, prompt: list[int], sampling: Sampling) -> None:
    """Raises InputError for token ids that the model has no logits for, which would be an error of the whole device."""
    largest = max([*prompt, *(token for token, _ in sampling.logit_bias)], default=0)
    if largest >= vocabulary_size:
        raise InputError(f"token id {largest}: this model has {vocabulary_size} tokens")


def out_of_memory(error: BaseException) -> RuntimeError:
    """What an answer ends with that was evicted."""
    return RuntimeError(
        "the device ran out of memory and the longest answer was evicted; lower serve.engine.cache_bytes or "
        f"serve.max_concurrent_requests ({error})"
    )
