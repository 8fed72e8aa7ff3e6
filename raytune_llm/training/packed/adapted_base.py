"""A base made ready for a pack: its layers wrapped by a stack of adapters, its head narrowed to labels, its attention
without masks; given back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from transformers import PreTrainedModel

from raytune_llm.models.attention import use_maskless_attention
from raytune_llm.models.pointwise import fuse_pointwise
from raytune_llm.models.reward_head import head_sizes
from raytune_llm.models.stacked_lora import AdapterStack
from raytune_llm.training.packed.checkpointing import set_checkpointing
from raytune_llm.training.packed.label_head import LabelHead
from raytune_llm.training.packed.optimizer import RowAdamW
from raytune_llm.training.packed.score_head import ScoreHead


class AdaptedBase:
    """A model with room for `capacity` trainable adapters of rank ≤ `max_lora_rank` on its layers `names`, changed in
    place until close()."""

    def __init__(
        self, model: PreTrainedModel, names: Sequence[str], *, capacity: int, max_lora_rank: int, compiled: bool
    ) -> None:
        """`compiled`: torch.compile fuses the pointwise parts (models/pointwise.py), which takes some seconds and pays
        on a GPU. Raises CompileError, with the model as it was, where that fails."""
        self.model = model.eval()
        self.names, self.capacity = list(names), capacity
        heads = head_sizes(model)
        with ExitStack() as undo:
            undo.enter_context(use_maskless_attention(model))
            self.stack = AdapterStack(
                model, names, capacity=capacity, max_lora_rank=max_lora_rank, trainable=True, heads=heads
            )
            undo.callback(self.stack.remove)
            self.head = ScoreHead(model, self.stack) if heads else LabelHead(model, fused=compiled)
            undo.callback(self.head.remove)
            if compiled:
                undo.enter_context(fuse_pointwise(model))
            self._undo = undo.pop_all()
        assert self.stack.theta is not None and self.stack.grad is not None
        self.theta, self.grad = self.stack.theta, self.stack.grad
        """Master weights and their gradients, (capacity, P)."""
        self.optimizer = RowAdamW(self.theta)
        self._checkpointing = False

    def close(self) -> None:
        """Give the model back as it was."""
        self.checkpointing = False
        self._undo.close()

    @property
    def num_bytes(self) -> int:
        """Bytes of the slots' tables."""
        tables = (self.theta, self.grad, self.optimizer.m, self.optimizer.v, self.stack.table)
        return sum(table.nbytes for table in tables)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of a pass over all slots in any order: a copy of what it computes with, and gradients."""
        return self.stack.table[: self.capacity].nbytes + self.grad.nbytes

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        if enabled != self._checkpointing:
            set_checkpointing(self.model, self.stack, enabled)
            self._checkpointing = enabled
