"""What is trained on a base: a LoRA adapter or all of its weights; and how either is stored and loaded again.

PEFT builds and stores adapters (Hu et al., 2021, arXiv 2106.09685; rsLoRA arXiv 2312.03732; DoRA arXiv 2402.09353);
an exact PEFT or transformers folder is the only format. The adapter's initial weights depend on the seed alone, so
that every backend starts from the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raytune_llm.input_error import require
from raytune_llm.models.base import Base, Facts, linear_targets, torch_dtype

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
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

    def check(self, rank: int, facts: Facts) -> None:
        """Raise ValueError when the base can't take it."""
        ...

    def config(self, model: PreTrainedModel, *, rank: int) -> PeftConfig | None:
        """PEFT's config of what is trained; None for all weights."""
        ...

    def apply(self, model: PreTrainedModel, *, rank: int, seed: int) -> Any:
        """The model with its trainable parameters marked, in fp32."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters beside frozen linear layers."""

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

    def __post_init__(self) -> None:
        require(self.rate_factor > 0, "adapter.rate_factor", self.rate_factor, "> 0")
        require(self.alpha > 0, "adapter.alpha", self.alpha, "> 0")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "0 ≤ dropout < 1")

    def check(self, rank: int, facts: Facts) -> None:
        if rank > facts.largest_adapter_size:
            raise ValueError(
                f"tuning.adapter_size={rank} is beyond what the base allows: its smallest adapted layer has a side of "
                f"{facts.largest_adapter_size}; choose 1 to {facts.largest_adapter_size}"
            )

    def config(self, model: PreTrainedModel, *, rank: int) -> LoraConfig:
        """PEFT's config of this adapter on this model. Raises ValueError when a target isn't there."""
        from peft import LoraConfig, TaskType

        from raytune_llm.models.score import heads

        names = linear_targets(model)
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        missing = sorted(set(self.targets or []) - set(leaves))
        if missing:
            raise ValueError(f"adapter.targets={missing} are not linear layers of this base; it has {leaves}")
        kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
        return LoraConfig(
            task_type=TaskType.SEQ_CLS if heads(model) else kind,
            modules_to_save=heads(model) or None,
            r=rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted(self.targets) if self.targets else leaves,
            use_rslora=self.rslora,
            use_dora=self.dora,
            bias="none",
        )

    def apply(self, model: PreTrainedModel, *, rank: int, seed: int) -> Any:
        import torch
        from peft import get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, self.config(model, rank=rank), autocast_adapter_dtype=False)
        _raise_precision(adapted)
        return adapted


@dataclass(frozen=True, kw_only=True)
class Full:
    """Full fine-tuning: every weight is trained."""

    rate_factor: float
    """Times the base's recommended learning rate, which is meant for adapters; > 0."""

    kind = "model"
    trains_base = True

    def __post_init__(self) -> None:
        require(self.rate_factor > 0, "adapter.rate_factor", self.rate_factor, "> 0")

    def check(self, rank: int, facts: Facts) -> None:
        """Every base can be fully tuned; the rank has no meaning here."""

    def config(self, model: PreTrainedModel, *, rank: int) -> None:
        return None

    def apply(self, model: PreTrainedModel, *, rank: int, seed: int) -> Any:
        """On a base in half precision the weights become fp32, for the optimizer's sake."""
        return (model if model.dtype.itemsize > 2 else model.float()).requires_grad_(True)


def continued(folder: str | Path, model: PreTrainedModel) -> Any:
    """The model with the adapter of a folder on it, to be trained further, in fp32."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=False)
    _raise_precision(adapted)
    return adapted


def load_tuned(folder: str | Path, base: Base, model: PreTrainedModel | None = None, *, score: bool = False) -> Any:
    """The tuned model of a registry folder, in eval mode: PEFT's adapter on the base (on `model` if it is given, which
    is changed in place), or the fully tuned model itself; with `score`, a reward model."""
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        return PeftModel.from_pretrained(model if model is not None else base.load(score=score), str(folder)).eval()
    from raytune_llm.models.base import auto_class

    loaded = auto_class(base.facts.is_encoder_decoder, score=score).from_pretrained(
        folder, dtype=torch_dtype(base.dtype), attn_implementation=base.attention, use_safetensors=True
    )
    if not score:
        loaded.generation_config.do_sample = False
    return loaded.eval()


def _raise_precision(adapted: Any) -> None:
    """What is trained in fp32 (fp64), for the optimizer's sake."""
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 8:
            parameter.data = parameter.data.float()
