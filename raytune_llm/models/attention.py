"""Causal attention: without masks where right padding makes them superfluous, over prefixes that rows share, and fast
in half precision on CPUs.

A token under causal attention sees only tokens before it, so that padding on the right is never seen. transformers
builds a mask nevertheless, or finds out by a wait for the device whether it must; an attention that it doesn't know
gets none.

In bfloat16 on a CPU the backward pass of torch's flash attention is slower than plain matrix products: 14 times at 41
tokens, 4 times at 256, 1.2 times at 1,024 (Zen 5, torch 2.13); and one query without a mask takes it 7 times as long.
There the products are made plainly, all heads that share keys in one. Where gradients are recorded, scores are rounded
to bfloat16, which adds nothing to what its other roundings do to a training; elsewhere they are float32, as served
answers are compared token by token.

Shape letters: B rows, H heads, G heads that share keys and values, T queries, K keys, D head size.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raytune_llm.compat import attention_implementation
from raytune_llm.models.shared_prefix import SharedPrefix

FULL_ATTENTION = "full_attention"
UNCOMMON = ("position_bias", "cache", "softcap")
"""Options of transformers' sdpa attention that only it takes."""
SDPA = "sdpa"
MASKLESS = "maskless_sdpa"
MOST_PLAIN_KEYS = {True: 1024, False: 256}
"""Keys up to which plain products are faster on a CPU in half precision, with and without gradients. One query without
a mask is faster with any number."""


def prepare_attention() -> None:
    """Have sdpa take what is fast, in this process.

    On a CPU in half precision plain products. On a GPU flash or memory-efficient attention: cuDNN's plans each new
    shape anew, which takes about half a second, and batches, prompts and key-value caches have new shapes all the time.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(SDPA, fast_sdpa)
    AttentionInterface.register(MASKLESS, maskless_sdpa)


def has_full_attention(model: Any) -> bool:
    """Whether every token of a causal model may attend to all tokens before it, in all layers."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {FULL_ATTENTION} if kinds else getattr(config, "sliding_window", None) is None


def use_maskless_attention(model: Any) -> ExitStack:
    """Until the returned stack is closed, a causal model with full attention by torch's sdpa runs without masks: its
    inputs must be padded on the right only, and bring their own mask where there is a cache. Other models run as they
    are."""
    before, undo = attention_implementation(model), ExitStack()
    if not model.config.is_encoder_decoder and before == SDPA and has_full_attention(model):
        prepare_attention()
        model.set_attn_implementation(MASKLESS)
        undo.callback(model.set_attn_implementation, before)
    return undo


def fast_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa attention, (B, T, H, D), by plain products where they are faster. query: (B, H, T, D); key,
    value: (B, H / G, K, D)."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_masked = attention_mask is None and is_causal and num_queries > 1
    sees_all = attention_mask is None and num_queries == 1
    if (
        not (_is_half_on_cpu(query) and (sees_all or _is_short(key)))
        or any(options.get(name) is not None for name in UNCOMMON)
        or options.get("dropout")
        or (is_masked and num_queries != num_keys)
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    mask = causal_mask(num_queries, num_keys, query) if is_masked else attention_mask
    return plain_attention(query, key, value, mask, options.get("scaling")).transpose(1, 2).contiguous(), None


def maskless_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: SharedPrefix | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The same, also over rows of the layout `shared_prefix`. transformers makes no mask for it; one that is given
    holds."""
    if shared_prefix is None:
        return fast_sdpa(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    (query, row_query), (key, row_key), (value, row_value) = map(shared_prefix.split, (query, key, value))
    row_keys, row_values = shared_prefix.lengthened(key, row_key), shared_prefix.lengthened(value, row_value)
    of_prefix = causal_attention(query, key, value, scaling)
    of_rows = causal_attention(row_query, row_keys, row_values, scaling)
    return shared_prefix.joined(of_prefix, of_rows).transpose(1, 2).contiguous(), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(B, H, T, D), where the last query sees all K keys and each one before it one less."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if _is_half_on_cpu(query) and _is_short(key):
        mask = causal_mask(num_queries, num_keys, query)
        return plain_attention(query, key, value, mask, scaling)
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    sees = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    group = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(group, 1) for each in (key, value))  # with a mask only math attention groups
    return F.scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scaling)


def causal_mask(num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """To be added to scores, (T, K): 0 up to the key of the same place, counted from the end, -inf beyond."""
    blank = torch.full((num_queries, num_keys), -math.inf, dtype=like.dtype, device=like.device)
    return blank.triu_(num_keys - num_queries + 1)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(B, H, T, D). mask: added to the scores, or true where a key is seen; broadcast to (B, H, T, K)."""
    size, heads, num_queries, width = query.shape
    groups, num_keys = key.shape[1], key.shape[2]
    rows = heads // groups * num_queries
    scaled = query.reshape(size * groups, rows, width) * (width**-0.5 if scaling is None else scaling)
    keys, values = (each.reshape(size * groups, num_keys, each.shape[-1]) for each in (key, value))
    if not torch.is_grad_enabled():
        scaled, keys = scaled.float(), keys.float()
    scores = torch.bmm(scaled, keys.transpose(1, 2)).view(size, groups, -1, num_queries, num_keys)
    if mask is not None:
        added = _added(mask, scores)
        if added.dim() == 4:
            added = added.unsqueeze(1) if added.shape[1] == 1 else added.view(size, groups, -1, *added.shape[2:])
        scores = scores + added
    found = torch.bmm(scores.softmax(-1).to(values.dtype).view(size * groups, rows, num_keys), values)
    return found.view(size, heads, num_queries, -1)


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask as it is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return scores.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(scores.dtype).min)


def _is_half_on_cpu(states: Tensor) -> bool:
    return states.device.type == "cpu" and states.dtype.itemsize == 2


def _is_short(key: Tensor) -> bool:
    return key.shape[2] <= MOST_PLAIN_KEYS[torch.is_grad_enabled()]
