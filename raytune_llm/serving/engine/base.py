"""What an engine is: it holds a base and its tuned versions, and turns prompt tokens into a stream of answer text.

An engine is one file with two classes: the choice (a dataclass that conf/serve names under `engine`) and what its
`load` returns. Templates, tokenisation, limits and OpenAI's words belong to app.py; batching, caches and devices to
the engine. Imports neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raytune_llm.data.tokens import Tokens
    from raytune_llm.models.base import Base
    from raytune_llm.serving.catalog import Catalog


class Finish(Enum):
    """Why an answer ended, in OpenAI's words."""

    stop = "stop"
    """An end-of-answer token or a stop string."""
    length = "length"
    """max_tokens were generated."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is drawn."""

    max_tokens: int
    """Longest answer; ≥ 1."""
    temperature: float
    """0 takes the likeliest token always; > 0 divides the logits before sampling."""
    top_p: float
    """Only the likeliest tokens that together have this probability are drawn from; 0 < top_p ≤ 1."""
    seed: int | None
    """The same seed, prompt and model give the same answer, whatever else is decoded; null = a new one each time."""
    stop: tuple[str, ...]
    """The answer ends before the first of these."""
    num_logprobs: int | None
    """How many of the likeliest tokens are told beside each chosen one; None tells no log-probabilities."""
    stream: bool
    """Whether text is told as it comes; else it may be told in one delta at the end."""


@dataclass(frozen=True)
class TokenLogprob:
    """log p of a chosen token, nats, under the model itself (before temperature and top_p), and the likeliest ones."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Delta:
    """What one decoding step adds to an answer. The texts of an answer's deltas joined are the answer."""

    text: str
    num_tokens: int
    """Tokens generated since the previous delta; the token that ends the answer is not counted."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    """Set in the last delta alone."""


@dataclass(frozen=True)
class ServedModel:
    """A base, adapter or fully tuned model as a replica has it."""

    id: str
    kind: str
    """base, adapter or model."""
    folder: Path | None
    """Its files on this node; None for the base."""
    tokens: Tokens
    """Its own tokenizer and chat template."""
    stop_ids: tuple[int, ...]
    """Tokens that end its answers."""


class Engine(Protocol):
    """A loaded engine."""

    @property
    def num_running(self) -> int:
        """Answers being decoded or waiting for it."""
        ...

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a place."""
        ...

    @property
    def num_adapter_loads(self) -> int:
        """Times an adapter was put into memory, from the start on."""
        ...

    def add(self, model: ServedModel) -> None:
        """Load one more model; what is being decoded goes on. Raises InputError when its files don't suit this base."""
        ...

    def remove(self, id: str) -> None:
        """Answer by this model no more; what is being decoded goes on."""
        ...

    def held(self) -> list[str]:
        """Models that answer without being read again first; those that are never put out may be left out."""
        ...

    def is_cold(self, id: str) -> bool:
        """Whether a model's adapter must be read again before it answers."""
        ...

    def num_adapted_modules(self, id: str) -> int:
        """Modules of the base that a model's adapter is applied to; 0 for the base and for fully tuned models."""
        ...

    def references(self, model: ServedModel) -> tuple[Any, Any]:
        """The base and a version as transformers and PEFT load them, in eval mode, untouched by what is decoding."""
        ...

    def generate(self, model: str, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """The answer of the served model of that id; closing the stream early stops the decoding."""
        ...

    def check_health(self) -> None:
        """Raise RuntimeError when it can't answer any more."""
        ...

    def close(self) -> None:
        """Stop decoding and release what it holds."""
        ...


class EngineConfig(Protocol):
    """What conf/serve chooses under `engine`."""

    def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
        """What one replica reserves, as Ray's actor options: num_cpus, num_gpus."""
        ...

    def load(self, base: Base, *, max_running: int) -> Engine:
        """An engine with the base loaded; models, the base among them, are made known to it by `add`."""
        ...

    def named(self, catalog: Catalog) -> Catalog:
        """The catalog with the names that this engine answers to."""
        ...

    def application(
        self, own: Callable[[], Any], catalog: Catalog, scaling: Mapping[str, Any], *, is_guarded: bool
    ) -> Any:
        """The Serve application: `own()`, this package's replicas over `load`, or one that the engine brings along.

        scaling: Ray Serve's fields for the number of replicas; is_guarded: whether keys, limits per key or versions on
        demand are asked for. Raises InputError for what the engine doesn't offer.
        """
        ...

    def refused(self, handle: Any, *, timeout_seconds: float) -> dict[str, str]:
        """Why a running application doesn't serve which versions, by id."""
        ...
