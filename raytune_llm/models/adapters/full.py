"""Full fine-tuning: every weight of the base is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.errors import require
from raytune_llm.models.base import Facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Full:
    """Full fine-tuning: every weight is trained."""

    rate_factor: float
    """Times the base's recommended learning rate, which is meant for adapters; > 0."""

    kind = "model"
    trains_base = True
    own_process_keys = ()

    def __post_init__(self) -> None:
        require(self.rate_factor > 0, "adapter.rate_factor", self.rate_factor, "> 0")

    def check(self, lora_rank: int, facts: Facts) -> None:
        """Every base can be fully tuned; the rank has no meaning here."""

    def config(self, model: PreTrainedModel, *, lora_rank: int) -> None:
        return None

    def apply(self, model: PreTrainedModel, *, lora_rank: int, seed: int) -> Any:
        """On a base in half precision the weights become fp32, for the optimizer's sake."""
        return (model if model.dtype.itemsize > 2 else model.float()).requires_grad_(True)
