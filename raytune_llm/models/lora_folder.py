"""A PEFT LoRA folder: what its config promises, the modules it adapts, and its weights.

The scale of an adapter is alpha / r (Hu et al., 2021, arXiv 2106.09685), alpha / √r for rsLoRA (arXiv 2312.03732),
each with PEFT's patterns by module. Left to PEFT: DoRA, adapted embeddings and biases, and whatever else changes the
forward pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raytune_llm.compat import target_modules, value_of_pattern
from raytune_llm.errors import InputError
from raytune_llm.models.base import linear_targets
from raytune_llm.models.lora_weights import Weights

WEIGHTS_FILE = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
PLAIN_FORWARD: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_qalora": (False,),
}
"""LoraConfig's fields that change the forward pass, and the values with which it is y = x Wᵀ + s · (x Aᵀ) Bᵀ."""
PLAIN_START: dict[str, tuple[Any, ...]] = {
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "init_lora_weights": (True,),
}
"""Further fields that give modules their own rank or scale, or other initial weights, and their neutral values."""


def not_plain_setting(config: Any, allowed: Mapping[str, tuple[Any, ...]]) -> str | None:
    """The first setting of a LoraConfig that is not one of the allowed values, as field=value; None when all are."""
    for field, values in allowed.items():
        value = getattr(config, field, values[0])
        if value not in values:
            return f"{field}={value}"
    return None


def read_config(folder: Path, id: str) -> Any:
    """PEFT's config of an adapter's folder. Raises InputError for one that can't be served at all."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{id} has an adapter_config.json that PEFT can't read: {error}") from error
    if str(config.peft_type.value) != "LORA":
        raise InputError(f"{id} is a PEFT {config.peft_type.value} adapter; the local engine serves LORA")
    if config.modules_to_save:
        raise InputError(
            f"{id} replaces whole modules ({', '.join(config.modules_to_save)}); the local engine serves only LoRA"
        )
    return config


def can_stack(config: Any, model: nn.Module) -> bool:
    """Whether an adapter's forward pass is plain LoRA, and on linear layers only."""
    if not_plain_setting(config, PLAIN_FORWARD) is not None:
        return False
    return all(type(model.get_submodule(name)) is nn.Linear for name in target_names(config, model))


def stackable_config(folder: Path, model: nn.Module) -> Any:
    """PEFT's config of the adapter of a folder, if its forward pass is plain LoRA on linear layers of the model; None
    when it isn't, or the folder has no adapter."""
    from peft import PeftConfig

    if not (folder / "adapter_config.json").is_file():
        return None
    config = PeftConfig.from_pretrained(str(folder))
    is_lora = str(config.peft_type.value) == "LORA" and not getattr(config, "modules_to_save", None)
    return config if is_lora and can_stack(config, model) else None


def target_names(config: Any, model: Any) -> list[str]:
    """Full names of the modules that PEFT adapts by this config, in the model's order."""
    return linear_targets(model) if config.target_modules == "all-linear" else target_modules(config, model)


def largest_lora_rank(rank: int, rank_pattern: Mapping[str, int] | None) -> int:
    """The largest rank that an adapter has in any module."""
    return max([rank, *(rank_pattern or {}).values()])


def tensor_name(module: str, side: str) -> str:
    """The name of a module's A or B in a PEFT weights file."""
    return f"base_model.model.{module}.lora_{side}.weight"


def read_weights(folder: str | Path, names: Sequence[str]) -> Weights:
    """The weights of a PEFT folder, unscaled. Raises InputError unless it is a plain LoRA adapter on exactly these
    modules."""
    pairs, others = _read_pairs(Path(folder))
    found = {tensor_name(module, side) for module, pair in pairs.items() for side in pair}
    wrong = sorted((found | set(others)) ^ {tensor_name(name, side) for name in names for side in "AB"})
    if wrong:
        raise InputError(f"the adapter in {folder} is not plain LoRA on these modules; they differ in {wrong[:3]}")
    return {name: (pairs[name]["A"], pairs[name]["B"]) for name in names}


def read_scaled_weights(folder: Path, config: Any, model: nn.Module, id: str) -> Weights:
    """The weights of a PEFT folder with the scale folded into B: module → (A (r, in_features), B (out_features, r)),
    all zero-padded to one rank r, the largest of the adapter's modules.

    Raises InputError when a module is missing or unexpected, or has another shape than the base's layer.
    """
    pairs, unexpected = _read_pairs(folder)
    expected = target_names(config, model)
    missing = [name for name in expected if pairs.get(name, {}).keys() != {"A", "B"}]
    unexpected += sorted(pairs.keys() - set(expected))
    if missing or unexpected or not expected:
        wrong = [
            f"{len(names)} {what} (e.g. {names[0]})"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise InputError(
            f"{id} doesn't fit its base: weights {' and '.join(wrong) or 'for no module of it'}; was it tuned from "
            "another base?"
        )
    weights = {name: _scaled(id, name, pairs[name], config, model) for name in expected}
    rank = max(a.shape[0] for a, _ in weights.values())
    return {name: _padded(a, b, rank) for name, (a, b) in weights.items()}


def _read_pairs(folder: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Module → its tensors by side, "A" and "B", and the names of all other tensors of the file."""
    from safetensors.torch import load_file

    pairs: dict[str, dict[str, Tensor]] = {}
    others = []
    for key, tensor in load_file(folder / WEIGHTS_FILE).items():
        match = KEY.fullmatch(key)
        if match is None:
            others.append(key)
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    return pairs, others


def _scaled(id: str, name: str, pair: dict[str, Tensor], config: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    a, b = pair["A"].float(), pair["B"].float()
    layer: Any = model.get_submodule(name)
    rank = value_of_pattern(config.rank_pattern or {}, name, config.r)
    if a.shape != (rank, layer.in_features) or b.shape != (layer.out_features, rank):
        raise InputError(
            f"{id} doesn't fit its base: size mismatch at {name}: its weights are {tuple(a.shape)} and "
            f"{tuple(b.shape)}, a layer of {layer.in_features} to {layer.out_features} features takes rank {rank} as "
            f"{(rank, layer.in_features)} and {(layer.out_features, rank)}"
        )
    alpha = value_of_pattern(config.alpha_pattern or {}, name, config.lora_alpha)
    return a, b * (alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if a.shape[0] == rank:
        return a, b
    more = rank - a.shape[0]
    return nn.functional.pad(a, (0, 0, 0, more)), nn.functional.pad(b, (0, more))
