"""The engine of this package: transformers on CPUs or one GPU (decoder.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.errors import InputError, require
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Engine

if TYPE_CHECKING:
    from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """transformers in the replica's own process."""

    cpus_per_replica: float
    """CPUs that one replica reserves and computes with; > 0."""
    use_gpu: bool | None
    """Whether each replica gets a GPU; null = if the cluster has any."""
    max_resident_adapters: int
    """LoRA adapters kept in memory; beyond that the least recently used is evicted and loaded again on request. ≥ 1."""
    max_adapter_size: int
    """Largest LoRA rank that is loaded; memory grows with the largest one loaded. ≥ 1."""
    cache_bytes: int | None
    """Memory for the key-value caches of all answers; answers that don't fit wait, and one that never can is refused.
    ≥ 1, or null for half of a GPU's memory that is free once the base is loaded, a quarter of a CPU's."""
    prefill_chunk_tokens: int | None
    """Most tokens of prompts that are read between two decoding steps: running answers pause for as long as that takes.
    On a CPU fewer are read where they take more than a quarter of a second. ≥ 16, or null for 2048 on a GPU, 512 on a
    CPU."""
    compile: bool | None
    """Whether torch.compile fuses the pointwise parts of the base, and of its adapters' answers: it takes some seconds
    when a replica starts. null = on a GPU, where it works."""

    def __post_init__(self) -> None:
        require(self.cpus_per_replica > 0, "serve.engine.cpus_per_replica", self.cpus_per_replica, "> 0")
        for name in ("max_resident_adapters", "max_adapter_size"):
            require(getattr(self, name) >= 1, f"serve.engine.{name}", getattr(self, name), "≥ 1")
        chunk = self.prefill_chunk_tokens
        require(chunk is None or chunk >= 16, "serve.engine.prefill_chunk_tokens", chunk, "≥ 16 or null")
        cache_bytes = self.cache_bytes
        require(cache_bytes is None or cache_bytes >= 1, "serve.engine.cache_bytes", cache_bytes, "≥ 1 or null")

    def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
        if self.use_gpu and not cluster_has_gpu:
            raise InputError("serve.engine.use_gpu=true, but the cluster has no GPU; set it to null or false")
        gpus = 1.0 if (cluster_has_gpu if self.use_gpu is None else self.use_gpu) else 0.0
        return {"num_cpus": self.cpus_per_replica, "num_gpus": gpus}

    def load(self, base: Base, *, max_running: int) -> Engine:
        import torch

        from raytune_llm.serving.engine.decoder import LocalDecoder
        from raytune_llm.serving.engine.resident_models import ResidentModels

        device = "cuda" if torch.cuda.is_available() and self.use_gpu is not False else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, int(self.cpus_per_replica)))
        resident = ResidentModels(
            base,
            device,
            max_rows=max_running,
            max_adapters=self.max_resident_adapters,
            max_lora_rank=self.max_adapter_size,
            cache_bytes=self.cache_bytes,
            chunk_tokens=self.prefill_chunk_tokens,
            compile=self.compile,
        )
        return LocalDecoder(resident, max_running=max_running)

    def named(self, catalog: Catalog) -> Catalog:
        return catalog

    def application(
        self, own: Callable[[], Any], catalog: Catalog, scaling: Mapping[str, Any], *, is_guarded: bool
    ) -> Any:
        return own()

    def refused(self, handle: Any, *, timeout_seconds: float) -> dict[str, str]:
        return handle.refused.remote().result(timeout_s=timeout_seconds)
