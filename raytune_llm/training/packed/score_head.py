"""Scores of whole sequences by each slot's own linear head on the hidden state of the last token.

    score = w · h_last,        dscore/dw = h_last,        dscore/dh_last = w

A slot's w is part of its row of the stack, like its adapter, and is clipped, stepped and stored with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raytune_llm.models.forward import score_outputs
from raytune_llm.models.outputs import Outputs
from raytune_llm.models.reward_head import head_sizes
from raytune_llm.models.stacked_lora import AdapterStack
from raytune_llm.training.packed.batches import Batch


class ScoreHead:
    """The head of a reward model, one for each slot of a stack that has its `head_sizes`."""

    shares_prefix = False

    def __init__(self, model: PreTrainedModel, stack: AdapterStack) -> None:
        self._model, self._stack = model, stack
        (self._name,) = head_sizes(model)

    def remove(self) -> None:
        """The model was not changed."""

    @property
    def vocabulary(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    def initial(self) -> dict[str, Tensor]:
        """The head that a trial starts with, by its name."""
        return {self._name: self._own.detach().flatten().cpu()}

    def outputs(self, batch: Batch) -> Outputs:
        """The slots' outputs on a batch: a score for each row."""
        # Right padding under causal attention: no token can see it, so no attention mask is needed.
        body = getattr(self._model, self._model.base_model_prefix)
        hidden = body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        last = torch.from_numpy(batch.lengths - 1).to(hidden.device, non_blocking=True)
        hidden = hidden[torch.arange(len(last), device=hidden.device), last]
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        route = self._stack.route
        if route is None:
            return score_outputs(hidden @ self._own.detach().to(hidden.dtype))
        views = route.heads[self._name]
        grouped = hidden.view(route.num_slots, -1, hidden.shape[-1])
        return score_outputs(_Pooled.apply(grouped, views.weight.to(hidden.dtype), views.grad).flatten())

    @property
    def _own(self) -> Tensor:
        """The base's head, (H,)."""
        return self._model.get_submodule(self._name).weight[0]


class _Pooled(torch.autograd.Function):
    """Scores (S, C) from hidden states (S, C, H) and heads (S, H), whose gradient is added to `grad` itself."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, grad: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.grad = grad
        return torch.bmm(hidden, weight.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        ctx.grad.add_(torch.bmm(change.unsqueeze(1), hidden).squeeze(1))
        return change.unsqueeze(-1) * weight.unsqueeze(1), None, None
