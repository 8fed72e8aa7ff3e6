"""Low-rank adapters (Hu et al., 2021, arXiv 2106.09685; rsLoRA arXiv 2312.03732; DoRA arXiv 2402.09353), by PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.errors import InputError, require
from raytune_llm.models.base import Facts, linear_targets
from raytune_llm.models.loading import raise_precision

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters in parallel to frozen linear layers."""

    rate_factor: float
    """Times the base's recommended learning rate; > 0."""
    alpha: float
    """Updates are scaled by alpha / rank (alpha / √rank with rslora); > 0."""
    dropout: float
    """Dropout before the adapter; 0 ≤ dropout < 1."""
    targets: list[str] | None
    """Names of the adapted layers, e.g. [q_proj, v_proj]; null = every linear layer but the output head."""
    rslora: bool
    """Rank-stabilised scaling."""
    dora: bool
    """Weight-decomposed adapters; they can't share a packed base."""

    kind = "adapter"
    trains_base = False
    own_process_keys = ("adapter.targets", "adapter.dora")

    def __post_init__(self) -> None:
        require(self.rate_factor > 0, "adapter.rate_factor", self.rate_factor, "> 0")
        require(self.alpha > 0, "adapter.alpha", self.alpha, "> 0")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "0 ≤ dropout < 1")

    def check(self, lora_rank: int, facts: Facts) -> None:
        if lora_rank > facts.max_lora_rank:
            raise InputError(
                f"tuning.adapter_size={lora_rank} is beyond what the base allows: its smallest adapted layer has a "
                f"side of {facts.max_lora_rank}; choose 1 to {facts.max_lora_rank}"
            )

    def config(self, model: PreTrainedModel, *, lora_rank: int) -> LoraConfig:
        """PEFT's config of this adapter on this model. Raises InputError when a target isn't there."""
        from peft import LoraConfig, TaskType

        from raytune_llm.models.reward_head import heads

        names = linear_targets(model)
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        missing = sorted(set(self.targets or []) - set(leaves))
        if missing:
            raise InputError(f"adapter.targets={missing} are not linear layers of this base; it has {leaves}")
        kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
        return LoraConfig(
            task_type=TaskType.SEQ_CLS if heads(model) else kind,
            modules_to_save=heads(model) or None,
            r=lora_rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted(self.targets) if self.targets else leaves,
            use_rslora=self.rslora,
            use_dora=self.dora,
            bias="none",
        )

    def apply(self, model: PreTrainedModel, *, lora_rank: int, seed: int) -> Any:
        import torch
        from peft import get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, self.config(model, lora_rank=lora_rank), autocast_adapter_dtype=False)
        raise_precision(adapted)
        return adapted
