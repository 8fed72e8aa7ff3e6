"""Causal attention without masks, where right padding makes them superfluous.

A token under causal attention sees only tokens before it, so that padding on the right is never seen. transformers
builds a mask nevertheless, or finds out by a wait for the device whether it must; an attention that it doesn't know
gets none.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raytune_llm.compat import attention_implementation

FULL_ATTENTION = "full_attention"
MASKLESS = "maskless_sdpa"
AttentionInterface.register(MASKLESS, sdpa_attention_forward)


def avoid_planned_attention() -> None:
    """Have sdpa take flash or memory-efficient attention on a GPU, in this process: cuDNN's plans each new shape anew,
    which takes about half a second, and batches, prompts and key-value caches have new shapes all the time."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_full_attention(model: Any) -> bool:
    """Whether every token of a causal model may attend to all tokens before it, in all layers."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {FULL_ATTENTION} if kinds else getattr(config, "sliding_window", None) is None


def use_maskless_attention(model: Any) -> ExitStack:
    """Until the returned stack is closed, a causal model with full attention by torch's sdpa runs without masks: its
    inputs must be padded on the right only, and without a cache. Other models run as they are."""
    before, undo = attention_implementation(model), ExitStack()
    if not model.config.is_encoder_decoder and before == "sdpa" and has_full_attention(model):
        model.set_attn_implementation(MASKLESS)
        undo.callback(model.set_attn_implementation, before)
    return undo
