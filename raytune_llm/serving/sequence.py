"""One answer while it is decoded: its cache, its random stream, its text so far, and the client that waits for it.

Lives in the engine's thread; only `deltas` and `cancelled` are shared with the event loop of the client's request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from raytune_llm.serving.engine import Delta, Finish, Sampling, ServedModel, TokenLogprob
from raytune_llm.serving.sampling import Sampler
from raytune_llm.serving.text import Detokenizer, StopStrings


class Sequence:
    """Made in the event loop; `step` is called in the engine's thread until it returns False."""

    def __init__(self, served: ServedModel, prompt: list[int], sampling: Sampling) -> None:
        self.served = served
        self.cancelled = False
        self.deltas: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._prompt = prompt
        self._sampling = sampling
        self._tokenizer: Any = served.tokens.tokenizer
        self._stop_ids = served.stop_ids
        self._detokenizer = Detokenizer(self._tokenizer)
        self._stop = StopStrings(sampling.stop)
        self._told: list[TokenLogprob] = []
        self._untold_tokens = 0
        self._num_tokens = 0
        self._state: dict[str, Any] = {}
        self._sampler: Sampler | None = None
        self._last = -1

    def step(self, model: Any) -> bool:
        """Decode one token with the model, already switched to this answer's adapter; whether more are to come."""
        logits = self._first_logits(model) if self._sampler is None else self._next_logits(model)
        assert self._sampler is not None
        token = self._sampler.choose(logits)
        if token in self._stop_ids:
            return self._finish(Finish.stop, "")
        self._last = token
        self._num_tokens += 1
        self._untold_tokens += 1
        self._told += self._sampler.logprob(logits, token, self._tokenizer)
        text, stopped = self._stop.add(self._detokenizer.add(token))
        if stopped:
            self._tell(text, Finish.stop)
            return False
        if self._num_tokens == self._sampling.max_tokens:
            return self._finish(Finish.length, text)
        if text:
            self._tell(text)
        return True

    def fail(self, error: Exception) -> None:
        """Hand the client's request an exception."""
        self._put(error)

    def _first_logits(self, model: Any) -> torch.Tensor:
        """(1, V): the prompt is read, the cache made."""
        prompt = torch.tensor([self._prompt], device=model.device)
        if model.config.is_encoder_decoder:
            start = model.generation_config.decoder_start_token_id
            start = model.config.decoder_start_token_id if start is None else start
            self._sampler = Sampler(model, self._sampling, self._stop_ids, [start], prompt)
            self._state["encoder_outputs"] = model.get_encoder()(input_ids=prompt, return_dict=True)
            self._last = start
            return self._next_logits(model)
        self._sampler = Sampler(model, self._sampling, self._stop_ids, self._prompt, None)
        return self._forward(model, input_ids=prompt, logits_to_keep=1)

    def _next_logits(self, model: Any) -> torch.Tensor:
        """(1, V) after the last token."""
        name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        return self._forward(model, **{name: torch.tensor([[self._last]], device=model.device)})

    def _forward(self, model: Any, **inputs: Any) -> torch.Tensor:
        output = model(**inputs, **self._state, use_cache=True, return_dict=True)
        self._state["past_key_values"] = output.past_key_values
        return output.logits[:, -1]

    def _finish(self, finish: Finish, text: str) -> bool:
        """The last delta: `text`, then what was kept back, unless a stop string ended the answer."""
        rest, stopped = self._stop.add(self._detokenizer.flush())
        self._tell(text + rest + ("" if stopped else self._stop.flush()), Finish.stop if stopped else finish)
        return False

    def _tell(self, text: str, finish: Finish | None = None) -> None:
        self._put(Delta(text, self._untold_tokens, tuple(self._told), finish))
        self._told, self._untold_tokens = [], 0

    def _put(self, item: Delta | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.deltas.put_nowait, item)
