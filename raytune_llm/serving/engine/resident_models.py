"""The models in memory: a base, its adapters in the rows of a stack or applied by PEFT, and fully tuned models.

The stack and PEFT each wrap a module tree of their own over one copy of the base's weights.
"""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.models.base import Base, skeleton
from raytune_llm.models.decoding.fused import fuse_decoding
from raytune_llm.models.decoding.kv_cache import CacheBudget, default_budget
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.fp32_head import use_fp32_head
from raytune_llm.models.loading import load_tuned
from raytune_llm.models.lora_folder import can_stack, largest_lora_rank, read_config, read_scaled_weights
from raytune_llm.models.lora_weights import Weights
from raytune_llm.models.pointwise import CompileError
from raytune_llm.serving.engine.adapter_cache import AdapterCache
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.batch import Batch
from raytune_llm.serving.engine.unbatched import AdapterSwitcher
from raytune_llm.stores.weight_checks import check_folder

logger = logging.getLogger(__name__)

CHUNK_TOKENS = {"cuda": 2048, "cpu": 512}
"""Prompt tokens that are read between two decoding steps, where no number is configured."""


@dataclass(frozen=True)
class Prepared:
    """A model whose files were read: weights, config or model, and none of them for the base."""

    served: ServedModel
    weights: Weights | None = None
    """Of a stacked adapter."""
    config: Any = None
    """PEFT's config of an adapter that PEFT applies."""
    model: Any = None
    """A fully tuned model."""


class ResidentModels:
    """Belongs to the engine's thread, except where a method is documented as thread-safe."""

    def __init__(
        self,
        base: Base,
        device: str,
        *,
        max_rows: int,
        max_adapters: int,
        max_lora_rank: int,
        cache_bytes: int | None,
        chunk_tokens: int | None = None,
        compile: bool | None = False,
        is_bucketed: bool | None = None,
    ) -> None:
        """cache_bytes: for all key-value caches, None = a share of the free memory; chunk_tokens: see Batch, None = by
        the device; compile: whether pointwise parts of the base are fused, None = where steps are bucketed and it
        works; is_bucketed: see Batch, None = on a GPU.
        Raises InputError when they are to be fused and can't be."""
        self._base, self._device = base, device
        self._max_lora_rank = max_lora_rank
        plain = base.load(device=device).eval()
        use_fp32_head(plain)
        budget = CacheBudget(default_budget(plain.device) if cache_bytes is None else cache_bytes)
        is_bucketed = plain.device.type == "cuda" if is_bucketed is None else is_bucketed
        self._make_batch = partial(
            Batch,
            budget=budget,
            max_rows=max_rows,
            chunk_tokens=chunk_tokens or CHUNK_TOKENS[plain.device.type],
            is_bucketed=is_bucketed,
        )
        self.vocabulary_size = int(plain.get_input_embeddings().weight.shape[0])
        self._pristine = shared_copy(plain)
        """Never wrapped by PEFT or the stack; references start from copies of it."""
        self._switcher = AdapterSwitcher(plain)
        self._skeleton: Any = skeleton(base)
        """The base's module tree without weights and without PEFT's or the stack's layers."""
        self.adapter_cache: AdapterCache | None = None
        self._batch: Batch | None = None
        if can_batch(plain) and not base.is_quantized:
            stacked = shared_copy(plain)
            if compile or (compile is None and is_bucketed):
                _fuse(stacked, is_wanted=bool(compile))
            self.adapter_cache = AdapterCache(stacked, capacity=max_adapters)
            self._batch = self._make_batch(stacked, self.adapter_cache)
        elif compile:
            raise InputError(
                "serve.engine.compile=true: answers of this base aren't batched, so nothing is fused; set null"
            )
        self._full_models: dict[str, tuple[Any, Batch | None]] = {}
        self._stacked: dict[str, ServedModel] = {}
        self.num_adapted_modules: dict[str, int] = {}
        """By id, of all loaded models."""

    @property
    def batches(self) -> list[Batch]:
        """All batches that may hold answers."""
        return [
            batch for batch in (self._batch, *(batch for _, batch in self._full_models.values())) if batch is not None
        ]

    @property
    def num_loads(self) -> int:
        """Times an adapter was written to a row."""
        return 0 if self.adapter_cache is None else self.adapter_cache.num_loads

    @property
    def adapters_in_memory(self) -> list[str]:
        """Adapters that have a row. Thread-safe."""
        return [] if self.adapter_cache is None else list(self.adapter_cache.resident)

    def prepare(self, served: ServedModel) -> Prepared:
        """Read a model's files. Thread-safe. Raises InputError when they are damaged or don't fit."""
        if served.folder is not None:
            check_folder(served.folder)
        if served.kind == "adapter":
            assert served.folder is not None
            config = read_config(served.folder, served.id)
            self._check_lora_rank(served.id, config)
            if self.adapter_cache is None or not can_stack(config, self._skeleton):
                return Prepared(served, config=config)
            return Prepared(served, weights=read_scaled_weights(served.folder, config, self._skeleton, served.id))
        if served.kind == "model":
            assert served.folder is not None
            model = load_tuned(served.folder, self._base, device=self._device)
            use_fp32_head(model)
            return Prepared(served, model=model)
        return Prepared(served)

    def install(self, prepared: Prepared) -> None:
        """Make a prepared model ready to answer. Raises InputError, with nothing changed, when it doesn't fit."""
        served, num_adapted = prepared.served, 0
        if served.id in self.num_adapted_modules:
            raise InputError(f"{served.id} is already loaded")
        if prepared.weights is not None:
            assert self.adapter_cache is not None
            self._stacked[served.id] = served
            self.adapter_cache.offer(served.id, prepared.weights)
            num_adapted = len(prepared.weights)
        elif prepared.config is not None:
            assert served.folder is not None
            self._switcher.load(served.id, served.folder, prepared.config)
            num_adapted = self._switcher.num_adapted_modules(served.id)
        elif prepared.model is not None:
            batch = self._make_batch(prepared.model, None) if can_batch(prepared.model) else None
            self._full_models[served.id] = (prepared.model, batch)
        self.num_adapted_modules[served.id] = num_adapted

    def remove(self, id: str) -> None:
        """Unload a model that no answer uses."""
        del self.num_adapted_modules[id]
        self._full_models.pop(id, None)
        if self._stacked.pop(id, None) is not None:
            assert self.adapter_cache is not None
            self.adapter_cache.forget(id)
            assert self._batch is not None
            self._batch.forget(id)
        elif id in self._switcher:
            self._switcher.unload(id)

    def batch(self, id: str) -> Batch | None:
        """The batch of this model's answers; None when they are not batched."""
        if id in self._full_models:
            return self._full_models[id][1]
        return None if id in self._switcher else self._batch

    def is_stacked(self, id: str) -> bool:
        """Whether the model is an adapter that needs a row of the stack while it answers."""
        return id in self._stacked

    def is_cold(self, id: str) -> bool:
        """Whether a stacked adapter must be read again before it answers. Thread-safe."""
        return self.adapter_cache is not None and id in self._stacked and id not in self.adapter_cache

    def read(self, id: str) -> Weights:
        """The weights of a stacked adapter, from its files. Thread-safe."""
        served = self._stacked[id]
        assert served.folder is not None
        return read_scaled_weights(served.folder, read_config(served.folder, id), self._skeleton, id)

    def acquire(self, id: str, weights: Weights | None) -> bool:
        """Pin a stacked adapter's row for one more answer; returns False when there is no room for it now.

        weights: the adapter's, if they were read because it had no row.
        """
        assert self.adapter_cache is not None
        return self.adapter_cache.acquire(id, lambda: self.read(id) if weights is None else weights)

    def release(self, id: str) -> None:
        """Unpin a stacked adapter's row for one answer."""
        assert self.adapter_cache is not None
        self.adapter_cache.release(id)

    def use(self, id: str) -> Any:
        """The transformers model with the adapter `id` active, until the next call."""
        if id in self._full_models:
            return self._full_models[id][0]
        return self._switcher.use(id if id in self._switcher else None)

    def references(self, served: ServedModel) -> tuple[Any, Any]:
        """The base and a version as transformers and PEFT load them, over the base's weights in memory. Thread-safe."""
        assert served.folder is not None
        tuned = load_tuned(served.folder, self._base, shared_copy(self._pristine))
        return self._pristine, tuned.to(self._device)

    def _check_lora_rank(self, id: str, config: Any) -> None:
        rank = largest_lora_rank(config.r, config.rank_pattern)
        if rank > self._max_lora_rank:
            raise InputError(
                f"{id} has rank {rank}, more than serve.engine.max_adapter_size={self._max_lora_rank}; raise that, or "
                "tune with a smaller tuning.adapter_size"
            )


def _fuse(model: Any, *, is_wanted: bool) -> None:
    """Fuse a model's pointwise parts for good. Where that fails, raises InputError if it is wanted, else logs why."""
    try:
        fuse_decoding(model)
    except CompileError as error:
        if is_wanted:
            raise InputError(f"serve.engine.compile=true: {error}; set it to null or false") from error
        logger.warning("serving: %s; continuing without", error)


def shared_copy(model: Any) -> Any:
    """A copy of the module tree over the same weights."""
    held = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})
