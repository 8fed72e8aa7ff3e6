"""Log-probabilities of the labels, projecting to the vocabulary only where a label counts, a chunk at a time.

The model runs as it is; its output head receives no rows at all, and the hidden states meant for it are projected
here. With p = softmax(z), z = f(W h) and a label y,

    log p_y = z_y − log Σ_v exp z_v,        d log p_y / dh = Wᵀ f'(z) (1_y − p)

doesn't depend on the loss made of log p_y, so it is computed in the forward pass, chunk by chunk in fp32 (fp64), and
neither logits nor probabilities are kept. Where a position has several tokens y, W_y and Wᵀ p are kept apart. f
is the identity or what a few architectures do after the head: a factor, a soft cap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from raytune_llm.compat import attention_implementation
from raytune_llm.data.examples import TokenSequence
from raytune_llm.errors import InputError
from raytune_llm.models.attention import MASKLESS
from raytune_llm.models.fp32_head import fp32_linear
from raytune_llm.models.outputs import Outputs
from raytune_llm.models.pointwise import compiled_and_compared
from raytune_llm.training.packed.batches import Batch, TokenTable

AfterHead = tuple[float, float | None]
"""What f does: a factor, then a soft cap."""
CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits held at once, or those of FEWEST_ROWS if they are more."""
FEWEST_ROWS = 64
"""Fewer rows make a product with a large vocabulary slow: it reads all weights each time."""
HEEDED = 0.25
"""A layout that a model heeds leaves at most this share of the error of one that it doesn't."""


class LabelHead:
    """The output head of a model, used only where labels count."""

    def __init__(self, model: PreTrainedModel, *, fused: bool = False) -> None:
        """`fused`: what follows the product is one compiled kernel. Raises InputError when the head isn't linear, or
        the model does more to its logits than is known here."""
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise InputError(f"{type(model).__name__}'s output head is a {type(head).__name__}, not nn.Linear")
        self._model, self._head = model, head
        self._after_head = _after_head(model.config.get_text_config())
        self._chunk: Callable[..., Any] = _label_chunk
        self._where: Tensor | None = None
        self._hidden: Tensor | None = None
        self._hook = head.register_forward_pre_hook(self._narrow)
        self._check()
        self.shares_prefix = self._finds_shared_prefixes()
        """Whether rows may be laid out with a shared prefix (models/shared_prefix.py)."""
        if fused:
            logits = torch.randn(2, self.vocabulary, device=head.weight.device, dtype=_exact(head.weight))
            labels = torch.zeros(2, 1, dtype=torch.long, device=logits.device)
            self._chunk = compiled_and_compared(_label_chunk, logits, labels, self._after_head, True)

    def remove(self) -> None:
        self._hook.remove()

    @property
    def vocabulary(self) -> int:
        return self._head.out_features

    def initial(self) -> dict[str, Tensor]:
        """What a trial trains in addition to its adapter, by name: nothing."""
        return {}

    def outputs(self, batch: Batch) -> Outputs:
        """The model's outputs on a batch: (B, T') each, aligned with the labels."""
        flat = batch.where
        labels = batch.labels.flatten().index_select(0, flat)
        if self._model.config.is_encoder_decoder:
            hidden = self._run(flat, **_encoder_decoder_inputs(self._model, batch))
        else:
            # Right padding under causal attention: no token that counts can see it, so no attention mask is needed.
            hidden = self._run(batch.predicts, input_ids=batch.input_ids, **batch.layout)
        weight, bias = self._head.weight, self._head.bias
        logprobs, correct = _LabelLogprobs.apply(hidden, weight, bias, labels, self._after_head, self._chunk)
        size, shape = batch.mask.numel(), batch.mask.shape
        top_k: dict[str, Tensor] = {}
        if batch.top_k_ids is not None and batch.teacher_logprobs is not None:
            ids = batch.top_k_ids.long()
            student = _TopKLogprobs.apply(hidden, weight, bias, ids, *self._after_head)
            for name, values in (
                ("top_k_logprobs", student),
                ("teacher_logprobs", batch.teacher_logprobs.to(student.dtype)),
            ):
                empty = values.new_zeros(size, values.shape[-1])
                top_k[name] = empty.index_copy(0, flat, values).view(*shape, -1)
        return Outputs(
            logprobs.new_zeros(size).index_copy(0, flat, logprobs).view(shape),
            batch.mask.to(logprobs.dtype),
            correct.new_zeros(size).index_copy(0, flat, correct).view(shape),
            reference=None if batch.reference is None else batch.reference.to(logprobs.dtype),
            **top_k,
        )

    def _run(self, where: Tensor, **inputs: Any) -> Tensor:
        self._where = where
        try:
            self._model(**inputs, use_cache=False)
            assert self._hidden is not None
            return self._hidden
        finally:
            self._where = self._hidden = None

    def _narrow(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._where is None:
            return None
        hidden = args[0]
        self._hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._where)
        return (hidden[:, :0], *args[1:])

    @torch.no_grad()
    def _check(self) -> None:
        """Compare with the model's own logits on a few tokens."""
        ids = (torch.arange(8, device=self._head.weight.device).view(1, -1) * 7919 + 1) % self.vocabulary
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        where = mask.flatten().nonzero().squeeze(1)
        batch = Batch(ids, ids, mask, where, where - 1, np.array([8]), np.array([8]))
        found = self.outputs(batch).logprobs
        if self._model.config.is_encoder_decoder:
            logits = self._model(**_encoder_decoder_inputs(self._model, batch), use_cache=False).logits
        else:
            logits = self._model(input_ids=ids, use_cache=False).logits.roll(1, dims=1)
        expected = logits.to(found.dtype).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mask
        # the model's own head rounds its largest logits by so much
        if not self._is_close(found, expected, rounding=float(logits.abs().max())):
            raise InputError(
                f"{type(self._model).__name__} does something to its logits after the output head that isn't known here"
            )

    @torch.no_grad()
    def _finds_shared_prefixes(self) -> bool:
        """Whether the model passes the layout of its rows on to its attention, and gives the same then."""
        if attention_implementation(self._model) != MASKLESS:
            return False
        ids = [[(7919 * place + 1) % self.vocabulary for place in range(9)] + [row] * 3 for row in range(1, 4)]
        table = TokenTable([{"probe": TokenSequence(row, row)} for row in ids], is_encoder_decoder=False)
        rows, device = np.arange(3), self._head.weight.device
        batch = table.batch("probe", rows, device, share_among=1)
        try:
            shared = self.outputs(batch).logprobs
        except TypeError as error:
            if "shared_prefix" not in str(error):
                raise
            return False  # it takes no such argument
        own = self.outputs(table.batch("probe", rows, device)).logprobs
        ignored = self.outputs(replace(batch, shared_prefix=None)).logprobs
        # in half precision a base near uniform passes the first test with the layout ignored, as some do
        is_heeded = (shared - own).abs().max() < HEEDED * (ignored - own).abs().max()
        return self._is_close(shared, own) and bool(is_heeded)

    def _is_close(self, found: Tensor, expected: Tensor, rounding: float = 0.0) -> bool:
        """Whether log-probabilities are the same but for rounding, also that of logits of this size."""
        dtype = self._head.weight.dtype
        tolerance = 5e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
        return torch.allclose(found, expected, rtol=tolerance, atol=max(tolerance, rounding * torch.finfo(dtype).eps))


def _after_head(config: Any) -> AfterHead:
    """(factor, soft cap) that architectures apply to logits: Cohere multiplies, Granite divides, Gemma caps."""
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return factor, getattr(config, "final_logit_softcapping", None)


def _encoder_decoder_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    lengths = torch.from_numpy(batch.lengths).to(batch.input_ids.device, non_blocking=True)
    attention = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device) < lengths.unsqueeze(1)
    decoder_inputs = model.prepare_decoder_input_ids_from_labels(labels=batch.labels)
    return {"input_ids": batch.input_ids, "attention_mask": attention.long(), "decoder_input_ids": decoder_inputs}


class _LabelLogprobs(torch.autograd.Function):
    """(log p of each label, whether it is the first choice), (K,) each, from hidden states (K, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        after_head: AfterHead,
        chunk: Callable[..., Any],
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(labels), dtype=_exact(hidden), device=hidden.device)
        correct = torch.empty_like(logprobs)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(FEWEST_ROWS, CHUNK_ELEMENTS[hidden.device.type] // weight.shape[0])
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, bias)
            chosen = labels[part].unsqueeze(1)
            logprobs[part], correct[part], change = chunk(logits, chosen, after_head, slope is not None)
            if slope is not None:
                torch.mm(change.to(weight.dtype), weight, out=slope[part])
        ctx.mark_non_differentiable(correct)
        if slope is not None:
            ctx.save_for_backward(slope)
        return logprobs, correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * grad.unsqueeze(1).to(slope.dtype), None, None, None, None, None)


def _label_chunk(
    logits: Tensor, label: Tensor, after_head: AfterHead, wants_change: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log p of the labels (K, 1) and whether each is the first choice, (K,) both, from what the head gave, (K, V); and
    d log p / d of that, (K, V), where it is wanted."""
    factor, cap = after_head
    if factor != 1.0:
        logits = logits * factor
    if cap is not None:
        logits = (logits / cap).tanh_().mul_(cap)
    chosen, first = logits.gather(1, label), logits.amax(1, keepdim=True)
    probabilities = torch.softmax(logits, dim=1)
    # log Σ exp z = max z − log max p: no second pass of exponentials.
    logprobs = (chosen - first + probabilities.amax(1, keepdim=True).log_()).squeeze(1)
    correct = (chosen >= first).squeeze(1)
    if not wants_change:
        return logprobs, correct, None
    change = probabilities.neg_().scatter_add_(1, label, torch.ones_like(chosen))
    if cap is not None:
        change *= 1 - (logits / cap).square_()
    if factor != 1.0:
        change *= factor
    return logprobs, correct, change


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W h + b in fp32 (fp64), (K, V). On a GPU its sums are not rounded on the way; a CPU has no such product."""
    if hidden.is_cuda:
        return fp32_linear(hidden, weight, bias)
    return F.linear(hidden, weight, bias).to(_exact(hidden))


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _TopKLogprobs(torch.autograd.Function):
    """log p of k tokens at each position, (K, k), from hidden states (K, H) and ids (K, k)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, factor: float, cap: float | None
    ) -> Tensor:
        logprobs = torch.empty(ids.shape, dtype=_exact(hidden), device=hidden.device)
        gains = torch.full_like(logprobs, factor)
        mean = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(FEWEST_ROWS, CHUNK_ELEMENTS[hidden.device.type] // weight.shape[0])
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, bias) * factor
            if cap is not None:
                logits = (logits / cap).tanh() * cap
            logprobs[part] = logits.gather(1, ids[part]) - logits.logsumexp(1, keepdim=True)
            if mean is None:
                continue
            slopes = torch.softmax(logits, dim=1) * factor
            if cap is not None:
                bend = 1 - (logits / cap).square()
                slopes, gains[part] = slopes * bend, factor * bend.gather(1, ids[part])
            torch.mm(slopes.to(weight.dtype), weight, out=mean[part])
        if mean is not None:
            ctx.save_for_backward(mean, gains, ids, weight)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        mean, gains, ids, weight = ctx.saved_tensors
        own = F.embedding_bag(ids, weight, mode="sum", per_sample_weights=(grad * gains).to(weight.dtype))
        return (own - grad.sum(1, keepdim=True).to(mean.dtype) * mean, None, None, None, None, None)
