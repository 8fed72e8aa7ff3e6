"""The engine's contract: it holds a base and its tuned versions, and turns prompt tokens into a stream of answer text.

An engine has two classes: its config (a dataclass that conf/serve names under `engine`) and what the config's `load`
returns. Templates, tokenisation, limits and OpenAI's format belong to serving/api; batching, caches and devices to the
engine. Imports neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.models.base import Base
    from raytune_llm.serving.catalog import Catalog


class Busy(RuntimeError):
    """The engine has too much work of a kind to take more of it now."""


class Finish(Enum):
    """Why an answer ended; the values are OpenAI's finish_reason."""

    stop = "stop"
    """An end-of-answer token or a stop string."""
    length = "length"
    """max_tokens were generated."""


class PromptForm(Enum):
    """How a text becomes a prompt; serving/engine/prompts.py has what each is."""

    raw = "raw"
    pair = "pair"
    chat = "chat"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is sampled."""

    max_tokens: int
    """Longest answer; ≥ 0, where 0 only reads the prompt."""
    temperature: float
    """0 always takes the likeliest token; > 0 divides the logits before sampling."""
    top_p: float
    """Samples only from the likeliest tokens that together have this probability; 0 < top_p ≤ 1."""
    seed: int | None
    """The same seed, prompt and model give the same answer, whatever else is decoded; null = a new one each time."""
    stop: tuple[str, ...]
    """The answer ends before the first of these."""
    num_logprobs: int | None
    """How many of the likeliest tokens are returned with each chosen one; None returns no log-probabilities."""
    stream: bool
    """Whether text is returned as it is generated; else it may come in one delta at the end."""
    top_k: int | None = None
    """Samples only from this many of the likeliest tokens, before top_p; ≥ 1; None = from all."""
    min_p: float = 0.0
    """Samples only from tokens at least this many times as likely as the likeliest; 0 ≤ min_p ≤ 1; 0 = from all."""
    presence_penalty: float = 0.0
    """Taken from the logits of the tokens that the answer has, nats; OpenAI allows -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the answer has it, nats; OpenAI allows -2 to 2."""
    repetition_penalty: float = 1.0
    """Logits of the tokens of prompt and answer are divided by it where positive, else multiplied; > 0; 1 = none."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits, nats; OpenAI allows -100 to 100."""
    ignore_eos: bool = False
    """Whether the model's end tokens are text like others, so that only max_tokens and stop strings end the answer."""
    json_schema: str | None = None
    """JSON text of a JSON Schema that the answer's text is an instance of, unless max_tokens cuts it; None = any
    text."""
    num_prompt_logprobs: int | None = None
    """How many of the likeliest tokens are returned with each token of the prompt; None returns none for it."""


@dataclass(frozen=True)
class TopToken:
    """A token that could have been chosen."""

    text: str
    """Decoded alone: replacement characters where it is a part of a character; special tokens by name."""
    logprob: float
    """Nats."""
    data: bytes
    """The token's own bytes in UTF-8, also of a part of a character. Joined over an answer, its text; special tokens
    by name."""


@dataclass(frozen=True)
class TokenLogprob:
    """log p of a chosen token, nats, under the model itself (before temperature, penalties, bias and grammar), and the
    likeliest ones. Text and data as of TopToken."""

    text: str
    logprob: float
    top: tuple[TopToken, ...]
    """Likeliest first."""
    data: bytes


@dataclass(frozen=True)
class Delta:
    """What one decoding step adds to an answer. The texts of an answer's deltas joined are the answer."""

    text: str
    num_tokens: int
    """Tokens generated since the previous delta, without the end token."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    """Set only in the last delta."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the prompt's tokens, None for the first; only in the first delta, where they were requested."""

    def joined(self, following: Delta) -> Delta:
        """This and the next one in one."""
        return Delta(
            self.text + following.text,
            self.num_tokens + following.num_tokens,
            self.logprobs + following.logprobs,
            following.finish,
            self.prompt_logprobs,
        )


@dataclass(frozen=True)
class ServedModel:
    """A base, adapter or fully tuned model with its files and tokenizer on this node."""

    id: str
    kind: str
    """base, adapter or model."""
    folder: Path | None
    """Its files on this node; None for the base."""
    tokens: Tokens
    """Its own tokenizer and chat template."""
    stop_ids: tuple[int, ...]
    """Tokens that end its answers."""
    prompt_form: PromptForm = PromptForm.raw
    """The form of the prompts that it was tuned with; the base continues raw text."""


class Engine(Protocol):
    """A loaded engine."""

    @property
    def num_running(self) -> int:
        """Answers being decoded or waiting for it."""
        ...

    @property
    def num_waiting(self) -> int:
        """Answers waiting for a place in the batch."""
        ...

    @property
    def num_adapter_loads(self) -> int:
        """Times an adapter was put into memory since the start."""
        ...

    def add(self, model: ServedModel) -> None:
        """Load one more model while others decode. Raises InputError when its files don't fit this base."""
        ...

    def remove(self, id: str) -> None:
        """Unload a model; its answers in flight are finished."""
        ...

    def adapters_in_memory(self) -> list[str]:
        """Ids of the adapters that need no loading before they answer; those that are never evicted may be left out."""
        ...

    def is_cold(self, id: str) -> bool:
        """Whether a model's adapter must be loaded again before it answers."""
        ...

    def longest_answer(self, id: str) -> int | None:
        """Tokens, those of the prompt included, of the longest answer by a model that its memory has room for; None =
        no bound."""
        ...

    def num_adapted_modules(self, id: str) -> int:
        """Modules of the base that a model's adapter is applied to; 0 for the base and for fully tuned models."""
        ...

    def references(self, model: ServedModel) -> tuple[Any, Any]:
        """The base and a version as transformers and PEFT load them, in eval mode, isolated from the decoding."""
        ...

    def generate(
        self, model: str, prompt: list[int], sampling: Sampling, client: str = ""
    ) -> AsyncGenerator[Delta, None]:
        """The answer of the served model with that id; closing the stream early stops the decoding. Answers that wait
        are started in turn among clients."""
        ...

    def check_health(self) -> None:
        """Raise RuntimeError when it can no longer answer."""
        ...

    def close(self) -> None:
        """Stop decoding and release what it holds."""
        ...


class EngineConfig(Protocol):
    """A choice of conf/serve under `engine`."""

    def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
        """What one replica reserves, as Ray's actor options: num_cpus, num_gpus."""
        ...

    def load(self, base: Base, *, max_running: int) -> Engine:
        """An engine with the base's weights loaded; every model, the base included, is registered by `add`."""
        ...

    def named(self, catalog: Catalog) -> Catalog:
        """The catalog with the model names of this engine."""
        ...

    def application(
        self, own: Callable[[], Any], catalog: Catalog, scaling: Mapping[str, Any], *, is_guarded: bool
    ) -> Any:
        """The Serve application: `own()`, which is this package's replicas over `load`, or the engine's own one.

        scaling: Ray Serve's fields for the number of replicas; is_guarded: whether API keys, limits per key or
        versions on demand are configured. Raises InputError for what the engine doesn't offer.
        """
        ...

    def refused(self, handle: Any, *, timeout_seconds: float) -> dict[str, str]:
        """The versions that a running application refused to serve: id → reason."""
        ...
