"""What is trained on a base: a LoRA adapter or all of its weights; and how either is stored and loaded again.

PEFT builds and stores adapters (Hu et al., 2021, arXiv 2106.09685; rsLoRA arXiv 2312.03732; DoRA arXiv 2402.09353);
an exact PEFT or transformers folder is the only format. The adapter's initial weights depend only on the seed, so
that every backend starts from the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from raytune_llm.models.base import Facts

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class Adapter(Protocol):
    """What conf/adapter chooses."""

    @property
    def rate_factor(self) -> float:
        """Times the base's recommended learning rate."""
        ...

    @property
    def kind(self) -> str:
        """The registry's kind of what is trained: adapter or model."""
        ...

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights learn. Where they don't, its own dropout is off: adapter.dropout is."""
        ...

    @property
    def own_process_keys(self) -> tuple[str, ...]:
        """Keys of the job, in full, in which trials on one base can't differ."""
        ...

    def check(self, lora_rank: int, facts: Facts) -> None:
        """Raise InputError when the base can't take it."""
        ...

    def config(self, model: PreTrainedModel, *, lora_rank: int) -> PeftConfig | None:
        """PEFT's config of what is trained; None for all weights."""
        ...

    def apply(self, model: PreTrainedModel, *, lora_rank: int, seed: int) -> Any:
        """The model with its trainable parameters marked, in fp32."""
        ...
