"""The pointwise parts of a model that decodes, fused by torch.compile (models/pointwise.py), for prompts and for steps
of one row or of several: compiled before the first request, not by it, and not while a CUDA graph is recorded."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from raytune_llm.errors import first_line
from raytune_llm.models.pointwise import Compile, CompileError, compiled, fuse_pointwise

SHAPES = ((2, 3), (1, 3), (2, 1), (1, 1))
"""Rows and tokens; a compiler takes one of either for a case of its own."""


def fuse_decoding(model: Any, compile: Compile = compiled) -> ExitStack:
    """Replace these parts of a causal model until the returned stack is closed. Takes the gradients of its parameters
    away, on which compiled code depends. Raises CompileError, with nothing replaced, where a part can't be compiled."""
    model.requires_grad_(False)
    with torch.inference_mode(), ExitStack() as undo:
        undo.enter_context(fuse_pointwise(model, compile, with_gradients=False))
        for rows, tokens in SHAPES:
            ids = torch.zeros(rows, tokens, dtype=torch.long, device=model.device)
            positions = torch.arange(tokens, device=model.device).expand(rows if tokens == 1 else 1, tokens)
            try:
                model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
            except Exception as error:  # whatever the compiler's backend raises
                raise CompileError(f"a pass over {rows}×{tokens} tokens failed: {first_line(error)}") from error
        return undo.pop_all()
