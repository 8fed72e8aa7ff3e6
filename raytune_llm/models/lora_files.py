"""A PEFT LoRA folder as the stacked forward takes it: A and B by module, the scale folded into B.

The scale is alpha / r (Hu et al., 2021, arXiv 2106.09685), alpha / √r for rsLoRA (arXiv 2312.03732), each with PEFT's
patterns by module. Left out, and left to PEFT: DoRA, adapted embeddings and biases, whatever else changes the forward
pass.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raytune_llm.compat import target_modules, value_of_pattern
from raytune_llm.errors import InputError

KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
PLAIN = {
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
"""PEFT's settings that change the forward pass, and the values with which it is the plain one."""


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
            f"{id} replaces whole modules ({', '.join(config.modules_to_save)}); the local engine serves LoRA alone"
        )
    return config


def can_stack(config: Any, model: nn.Module) -> bool:
    """Whether an adapter's forward pass is the plain one, on linear layers alone."""
    if any(getattr(config, name, allowed[0]) not in allowed for name, allowed in PLAIN.items()):
        return False
    return all(type(model.get_submodule(name)) is nn.Linear for name in targets(config, model))


def targets(config: Any, model: nn.Module) -> list[str]:
    """The modules that an adapter says it adapts, in the model's order."""
    return target_modules(config, model)


def read_weights(folder: Path, config: Any, model: nn.Module, id: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Module → (A (r, in_features), B (out_features, r) times the scale), all of one rank, the largest of its modules.

    Raises InputError when it lacks a module, has one too many, or has another shape than the base's layer.
    """
    from safetensors.torch import load_file

    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
        else:
            found.setdefault(match[1], {})[match[2]] = tensor
    expected = targets(config, model)
    missing = [name for name in expected if found.get(name, {}).keys() != {"A", "B"}]
    unknown += sorted(found.keys() - set(expected))
    if missing or unknown or not expected:
        wrong = [
            f"{len(names)} {what} (e.g. {names[0]})"
            for names, what in ((missing, "missing"), (unknown, "unexpected"))
            if names
        ]
        raise InputError(
            f"{id} doesn't fit its base: weights {' and '.join(wrong) or 'for no module of it'}; was it tuned from "
            "another base?"
        )
    weights = {name: _scaled(id, name, found[name], config, model) for name in expected}
    rank = max(a.shape[0] for a, _ in weights.values())
    return {name: _padded(a, b, rank) for name, (a, b) in weights.items()}


def _scaled(id: str, name: str, pair: dict[str, Tensor], config: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    a, b = pair["A"].float(), pair["B"].float()
    layer: Any = model.get_submodule(name)
    rank = _by_pattern(config.rank_pattern, name, config.r)
    if a.shape != (rank, layer.in_features) or b.shape != (layer.out_features, rank):
        raise InputError(
            f"{id} doesn't fit its base: size mismatch at {name}: its weights are {tuple(a.shape)} and "
            f"{tuple(b.shape)}, a layer of {layer.in_features} to {layer.out_features} features takes rank {rank} as "
            f"{(rank, layer.in_features)} and {(layer.out_features, rank)}"
        )
    alpha = _by_pattern(config.alpha_pattern, name, config.lora_alpha)
    return a, b * (alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _by_pattern(pattern: dict[str, Any] | None, name: str, otherwise: Any) -> Any:
    return value_of_pattern(pattern or {}, name, otherwise)


def _padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if a.shape[0] == rank:
        return a, b
    more = rank - a.shape[0]
    return nn.functional.pad(a, (0, 0, 0, more)), nn.functional.pad(b, (0, more))
