"""vLLM as the engine: ray.serve.llm's application, configured from the catalog's cards. For GPUs.

ray.serve.llm reads adapters by name from a bucket, so the registry must be in one. Adapters are named BASE:NAME/v3,
always with the version, because vLLM may answer from its cache of an earlier adapter after a reload under the same
name (vllm#42125). max_lora_rank is the smallest value allowed by vLLM that holds every adapter, because larger ones
cost memory (vllm#22782). When an adapter's module names don't match, vLLM silently answers as the base (vllm#34186):
the parity check of the running endpoint detects it.

Left out, and refused: fully tuned versions, DoRA, encoder-decoder bases, API keys, limits per key, versions on demand.
Never run on any machine; its configuration is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.errors import InputError, require
from raytune_llm.models.base import Base
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Engine
from raytune_llm.stores.card import Version
from raytune_llm.stores.storage import open_storage

LEGAL_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's max_lora_rank."""
BUCKETS = ("s3://", "gs://", "abfss://", "azure://")
"""Where ray.serve.llm reads adapters from."""


@dataclass(frozen=True, kw_only=True)
class VllmEngine:
    """vLLM under ray.serve.llm."""

    gpus_per_replica: int
    """GPUs that share one copy of the base by tensor parallelism; ≥ 1."""
    gpu_memory_utilization: float
    """Share of each GPU's memory that vLLM takes; 0 < share ≤ 1."""
    max_resident_adapters: int
    """Adapters in GPU memory at once; ≥ 1."""
    accelerator_type: str | None
    """Ray's name of the GPUs to run on, e.g. H100; null = any."""

    def __post_init__(self) -> None:
        for name in ("gpus_per_replica", "max_resident_adapters"):
            require(getattr(self, name) >= 1, f"serve.engine.{name}", getattr(self, name), "≥ 1")
        share = self.gpu_memory_utilization
        require(0 < share <= 1, "serve.engine.gpu_memory_utilization", share, "0 < share ≤ 1")

    def resources(self, *, cluster_has_gpu: bool) -> dict[str, float]:
        if not cluster_has_gpu:
            raise InputError("serve=vllm needs a GPU and the cluster has none; use serve=local")
        return {"num_gpus": float(self.gpus_per_replica)}

    def load(self, base: Base, *, max_running: int) -> Engine:
        raise InputError("serve=vllm runs its own replicas; it can't be loaded into a replica of this package")

    def named(self, catalog: Catalog) -> Catalog:
        base_id = catalog.entries[0].id
        names = [
            entry.id if entry.version is None else f"{base_id}:{entry.version.name}/v{entry.version.number}"
            for entry in catalog.entries
        ]
        entries = [replace(e, id=name, names=(name,)) for e, name in zip(catalog.entries, names, strict=True)]
        return replace(catalog, entries=tuple(entries))

    def application(
        self, own: Callable[[], Any], catalog: Catalog, scaling: Mapping[str, Any], *, is_guarded: bool
    ) -> Any:
        if is_guarded:
            raise InputError(
                "serve=vllm has no API keys, limits per key or versions on demand: leave serve.api_key_env, "
                "serve.requests_per_minute and serve.tokens_per_minute at null and serve.max_on_demand at 0, and put a "
                "gateway in front of it, or use serve=local"
            )
        fields = self.llm_config(catalog, scaling)
        try:
            from ray.serve.llm import LLMConfig, LoraConfig, build_openai_app
        except ImportError as error:
            raise InputError(f"serve=vllm needs vLLM ({error}): pip install 'raytune-llm[vllm]'") from error
        lora = LoraConfig(**fields.pop("lora_config"))
        return build_openai_app({"llm_configs": [LLMConfig(**fields, lora_config=lora)]})

    def refused(self, handle: Any, *, timeout_seconds: float) -> dict[str, str]:
        return {}

    def llm_config(self, catalog: Catalog, scaling: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ray.serve.llm's LLMConfig. Raises InputError for what vLLM can't serve."""
        base = catalog.base
        if base.facts.is_encoder_decoder:
            raise InputError(f"{base.name_or_path} is encoder-decoder, which serve=vllm can't serve; use serve=local")
        ranks = [lora_rank_of(version) for version in catalog.versions]
        root = catalog.versions[0].path.rsplit("/", 2)[0]
        return {
            "model_loading_config": {"model_id": catalog.entries[0].id, "model_source": base.name_or_path},
            "engine_kwargs": {
                "dtype": base.dtype.value,
                "max_model_len": base.facts.context_tokens,
                "tensor_parallel_size": self.gpus_per_replica,
                "gpu_memory_utilization": self.gpu_memory_utilization,
                "enable_lora": True,
                "max_loras": self.max_resident_adapters,
                "max_lora_rank": smallest_legal_lora_rank(max(ranks)),
                **({"revision": base.revision} if base.revision else {}),
            },
            "lora_config": {
                "dynamic_lora_loading_path": root,
                "max_num_adapters_per_replica": max(self.max_resident_adapters, len(ranks)),
            },
            "deployment_config": dict(scaling),
            **({"accelerator_type": self.accelerator_type} if self.accelerator_type else {}),
        }


def smallest_legal_lora_rank(rank: int) -> int:
    """The smallest allowed max_lora_rank that holds adapters of this rank. Raises InputError beyond the largest."""
    for legal in LEGAL_LORA_RANKS:
        if legal >= rank:
            return legal
    raise InputError(f"an adapter of rank {rank} is more than vLLM's largest, {LEGAL_LORA_RANKS[-1]}; use serve=local")


def lora_rank_of(version: Version) -> int:
    """The rank of a version. Raises InputError for one that vLLM can't serve."""
    if version.card.kind != "adapter":
        raise InputError(
            f"{version.reference} is of kind {version.card.kind}: serve=vllm serves only adapters; use serve=local"
        )
    if not version.path.startswith(BUCKETS):
        raise InputError(
            f"{version.reference} is in {version.path}: serve=vllm reads adapters from a bucket "
            f"({', '.join(BUCKETS)}); set home= to one, or use serve=local"
        )
    config = json.loads(open_storage(version.path).read("adapter_config.json"))
    if config.get("use_dora"):
        raise InputError(f"{version.reference} is a DoRA adapter, which vLLM can't serve; use serve=local")
    if config.get("modules_to_save"):
        raise InputError(f"{version.reference} replaces whole modules, which vLLM can't serve")
    from raytune_llm.models.lora_folder import largest_lora_rank

    return largest_lora_rank(config["r"], config.get("rank_pattern"))
