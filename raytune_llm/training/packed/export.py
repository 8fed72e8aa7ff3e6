"""A slot as a PEFT folder: adapter_config.json and adapter_model.safetensors, as PeftModel.from_pretrained reads
them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor

from raytune_llm.models.lora_folder import WEIGHTS_FILE, tensor_name
from raytune_llm.models.lora_weights import Weights
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.snapshot import Snapshot


def export_adapter(
    folder: str | Path,
    weights: Weights,
    config: LoraConfig,
    *,
    base: str,
    heads: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter in its master precision, with linear heads of one output trained in addition; `base`: its base's
    name or path, for the config."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in weights.items():
        tensors[tensor_name(name, "A")], tensors[tensor_name(name, "B")] = a.contiguous(), b.contiguous()
    for name, head in (heads or {}).items():
        tensors[f"base_model.model.{name}.weight"] = head.unsqueeze(0)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = copy.deepcopy(config)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))


def peft_config(spec: Hyperparameters, names: Sequence[str], *, is_encoder_decoder: bool) -> LoraConfig:
    """PEFT's description of a slot; its modules by their full names."""
    return LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if is_encoder_decoder else TaskType.CAUSAL_LM,
        r=spec.lora_rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        target_modules=list(names),
        bias="none",
    )


@dataclass(frozen=True)
class SlotSaver:
    """A snapshot of a slot as a checkpoint's folders."""

    snapshot: Snapshot
    config: LoraConfig
    """Of the pack: what the slots' adapters have in common."""
    base: str

    def save_state(self, folder: Path) -> None:
        """The snapshot must have moments."""
        self.snapshot.state().save(folder)

    def save_weights(self, folder: Path) -> None:
        spec, config = self.snapshot.spec, copy.deepcopy(self.config)
        config.r, config.lora_alpha, config.lora_dropout = spec.lora_rank, spec.alpha, spec.dropout
        config.use_rslora = spec.rslora
        export_adapter(folder, self.snapshot.weights(), config, base=self.base, heads=self.snapshot.heads())
