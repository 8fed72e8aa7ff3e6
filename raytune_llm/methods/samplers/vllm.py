"""vLLM draws the completions, as TRL offers it: inside the training process on its GPU, or on a server of its own; the
policy's weights are sent to it before each step. Leaves out: evaluation, whose completions the model itself draws, as
exact divergences need its distributions anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from raytune_llm.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class VLLM:
    """vLLM, which needs a GPU."""

    server_url: str | None
    """URL of a vLLM server for TRL, like http://host:8000; null = inside the training process, on the model's GPU."""
    gpu_memory_share: float
    """Of the GPU's memory, for vLLM inside the training process; > 0 and < 1. Ignored with server_url."""

    gpu_for = "method/sampler=vllm"

    def __post_init__(self) -> None:
        share, url = self.gpu_memory_share, self.server_url
        require(0 < share < 1, "method.sampler.gpu_memory_share", share, "> 0 and < 1")
        known = url is None or url.startswith(("http://", "https://"))
        require(known, "method.sampler.server_url", url, "http://… or https://…, or null")

    def check(self) -> None:
        if find_spec("vllm") is None:
            raise InputError(
                "method/sampler=vllm needs vLLM, which isn't installed: pip install 'raytune-llm[vllm]', or take "
                "method/sampler=transformers"
            )

    def arguments(self, stop_ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
        inside = {"vllm_gpu_memory_utilization": self.gpu_memory_share, "vllm_max_model_length": max_tokens}
        place = inside if self.server_url is None else {"vllm_server_base_url": self.server_url}
        return {
            "use_vllm": True,
            "vllm_mode": "colocate" if self.server_url is None else "server",
            "generation_kwargs": {"stop_token_ids": list(stop_ids)},
            **place,
        }
