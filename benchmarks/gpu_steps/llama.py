"""Random Llamas of known shapes: in memory, or as folders with a small tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raytune_llm.data.demo import path as demo_path
from raytune_llm.data.examples import Example, TokenSequence

from .paper import SHAPES
from .timing import fresh_memory

SPECIAL_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
"""The embedded base's, whose tokenizer the folders have."""


def make_config(shape: str, **changes: Any) -> LlamaConfig:
    sizes = SHAPES[shape]
    settings = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": sizes.tied,
        "dtype": torch.bfloat16,
        **SPECIAL_TOKENS,
    }
    return LlamaConfig(**(settings | changes))


def make_base(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """The same weights on every call, made on the device in the config's dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(config.dtype)
    torch.manual_seed(0)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def write_base(folder: Path, shape: str, device: torch.device) -> Path:
    """A base as a transformers folder, made by the first step that needs it."""
    if not (folder / "config.json").is_file():
        partial = folder.with_name(f"{folder.name}.partial")
        make_base(make_config(shape), device).save_pretrained(partial)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_path(f"base/{name}"), partial)
        partial.rename(folder)
        fresh_memory(device)
    return folder


def random_examples(count: int, *, shortest: int, longest: int, vocabulary: int) -> list[Example]:
    """Sequences of random tokens and lengths, all of them labels, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    examples: list[Example] = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        examples.append({"completion": TokenSequence(ids, ids)})
    return examples
