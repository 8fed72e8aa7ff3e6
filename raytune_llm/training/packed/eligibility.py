"""Which trials can be packed, and why the others can't."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from raytune_llm.models.lora_folder import PLAIN_FORWARD, PLAIN_START, not_plain_setting, target_names
from raytune_llm.models.reward_head import head_sizes, heads


def not_packable_reason(config: LoraConfig | None, method: Any, model: Any) -> str | None:
    """The reason why trials with this adapter (None = full tuning) can't share one base, or None when they can.

    `model` may be a weightless skeleton.
    """
    if not callable(getattr(method, "terms", None)):
        return "the method gives no terms: it samples, or its loss is its trainer's own"
    reason: str | None = method.needs.not_packable_reason
    if reason is not None:
        return reason
    if config is None:
        return "full tuning changes the base itself, which packed trials share"
    if not isinstance(config, LoraConfig):
        return f"{type(config).__name__} adapters are not LoRA"
    if (setting := not_plain_setting(config, PLAIN_FORWARD | PLAIN_START)) is not None:
        return f"{setting} is not plain LoRA on frozen linear layers"
    names = target_names(config, model)
    head = model.get_output_embeddings()
    for name in names:
        module = model.get_submodule(name)
        if module is head:
            return f"the adapter changes the output head {name}, which is projected only where labels count"
        if type(module) is not nn.Linear:
            return f"the adapted layer {name} is a {type(module).__name__}, not nn.Linear"
    if not names:
        return f"no layer of {type(model).__name__} matches target_modules={config.target_modules}"
    return _why_not_head(config, model)


def _why_not_head(config: LoraConfig, model: Any) -> str | None:
    """The reason why the head can't be packed, or None."""
    own, saved = heads(model), set(config.modules_to_save or ())
    if saved != set(own):
        return f"modules_to_save={sorted(saved)} is not plain LoRA on frozen linear layers"
    if own:
        name = type(model).__name__
        return None if head_sizes(model) else f"{name}'s score is not one linear map of the last token's hidden state"
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return f"{type(model).__name__}'s output head is a {type(head).__name__}, not nn.Linear"
    return None
