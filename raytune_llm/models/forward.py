"""One padded forward pass over token sequences: log p(label) of every label token, with what losses read besides.

Sequences are padded on the right with an attention mask, so that position t of a sequence is position t of the model
whatever its neighbours are. Causal bases project to the vocabulary only where a label counts: the boolean mask goes to
the model's own `logits_to_keep`, which every causal model of transformers offers and which leaves soft-capping, logit
scales and adapted heads in the model's hands. A model without that argument, and every encoder-decoder one (its padded
labels are nearly all real), gives all its logits and they are selected afterwards. Leaves out: losses (a method's
terms) and generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytune_llm.data.examples import IGNORED, TeacherTopK, TokenSequence
from raytune_llm.models.hidden_states import reader
from raytune_llm.models.outputs import Outputs
from raytune_llm.models.reward_head import heads, score

ELEMENTS_AT_ONCE = 1 << 26
"""Logits of which a copy in fp32 is made."""


def outputs(model: Any, sequences: Sequence[TokenSequence], *, pad_id: int, cache: Any = None) -> Outputs:
    """One forward pass over the sequences, differentiable, in their order.

    Args:
        model: a causal or encoder-decoder model of transformers, a reward model, or a PeftModel around one.
        sequences: B sequences; causal ones have as many labels as input ids.
        pad_id: any token id; padding is masked out.
        cache: an empty DynamicCache that a causal model fills with the sequences' keys and values.

    Returns:
        Outputs of shape (B, T), T the longest label sequence, aligned with the labels: entry t is about labels[t]. A
        causal model can't predict the first token, whose mask is 0. fp64 for fp64 logits, else fp32. A reward model
        gives a score instead, and T is 1.

    Raises:
        ValueError: no sequences, one without tokens, or a causal one whose labels don't match its input ids.
    """
    if heads(unwrapped(model)):
        _check(sequences, bool(unwrapped(model).config.is_encoder_decoder))
        inputs = _inputs(sequences, pad_id, next(model.parameters()).device)
        return score_outputs(score(model, unwrapped(model), inputs, [len(s.input_ids) for s in sequences]))
    read = reader(unwrapped(model))
    layers = read.layers if read else ()
    logits, labels, states = label_states(model, sequences, pad_id=pad_id, layers=layers, cache=cache)
    counts = labels != IGNORED
    found = replace(_read(logits, labels, counts), reference=_references(sequences, logits))
    teachers = [sequence.teacher for sequence in sequences if sequence.teacher is not None]
    if len(teachers) == len(sequences):
        found = _with_top_k(found, teachers, logits, counts)
    shown = [sequence.features for sequence in sequences if sequence.features is not None]
    return _with_features(found, shown, read(states), counts) if read and len(shown) == len(sequences) else found


def label_logits(model: Any, sequences: Sequence[TokenSequence], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """The logits that predict each label that counts, (K, V), differentiable, and the labels, (B, T), IGNORED where
    they don't count; row by row, the K are those. Arguments and errors as in `outputs`."""
    logits, labels, _ = label_states(model, sequences, pad_id=pad_id, layers=())
    return logits, labels


def label_states(
    model: Any, sequences: Sequence[TokenSequence], *, pad_id: int, layers: Sequence[int], cache: Any = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Also the hidden states of some layers (numbered as in models/hidden_states.py; of an encoder-decoder base, the
    decoder's) in the same places, each (K, width). Raises IndexError for a layer that the model doesn't have."""
    is_encoder_decoder = bool(unwrapped(model).config.is_encoder_decoder)
    _check(sequences, is_encoder_decoder)
    device = next(model.parameters()).device
    inputs, labels = _inputs(sequences, pad_id, device), _pad([s.labels for s in sequences], IGNORED, device)
    if cache is not None:
        inputs |= {"past_key_values": cache, "use_cache": True}
    if layers:
        inputs["output_hidden_states"] = True
    if is_encoder_decoder:
        places = labels != IGNORED
        found = model(**inputs, labels=labels)
        logits, states = found.logits[places], found.decoder_hidden_states if layers else ()
    else:
        labels[:, 0] = IGNORED
        places = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
        found, logits = _causal_logits(model, inputs, predicts=places)
        states = found.hidden_states if layers else ()
    return logits, labels, [states[layer][places] for layer in layers]


def blank_outputs(sequences: Sequence[TokenSequence], is_encoder_decoder: bool) -> Outputs:
    """The Outputs of a model that hasn't been run, fp64 zeros: the weights of loss terms don't depend on
    the model."""
    mask = (_pad([s.labels for s in sequences], IGNORED, torch.device("cpu")) != IGNORED).double()
    if not is_encoder_decoder:
        mask[:, 0] = 0
    none, zero = torch.zeros_like(mask), mask.new_zeros(len(sequences))
    top_k, teacher = mask.new_zeros(*mask.shape, 1), mask.new_zeros(*mask.shape, 2)
    features = mask.new_zeros(*mask.shape, 1, 1)
    return Outputs(none, mask, none, zero, zero, top_k, teacher, features, features)


def score_outputs(scores: Tensor) -> Outputs:
    """The Outputs of a reward model from its scores, (B,): no label counts."""
    empty = torch.zeros_like(scores).detach().unsqueeze(-1)
    return Outputs(empty, empty, empty, score=scores)


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """No gradients, every module in eval mode; afterwards each module is in the mode it was found in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PeftModel and what spreads it over workers, or the model itself."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_start(model: Any) -> int:
    """The token that the decoder of an encoder-decoder model reads first: the one that its configs name, else the one
    that it puts before labels itself."""
    owner = unwrapped(model)
    named = [getattr(config, "decoder_start_token_id", None) for config in (owner.generation_config, owner.config)]
    if found := [token for token in named if token is not None]:
        return int(found[0])
    labels = torch.zeros(1, 1, dtype=torch.long, device=owner.device)
    return int(owner.prepare_decoder_input_ids_from_labels(labels=labels)[0, 0])


def _causal_logits(model: Any, inputs: dict[str, Any], *, predicts: Tensor) -> tuple[Any, Tensor]:
    """What the model returns, and logits (labels that count, V) at the positions that predict them; predicts is
    boolean, (B, T)."""
    if "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters:
        found = model(**inputs, logits_to_keep=predicts)
        return found, found.logits
    found = model(**inputs)
    return found, found.logits[predicts]


def row_chunks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Parts of logits (K, V) in fp32 (fp64), so that no whole second copy of a large vocabulary's is made: the rows,
    and their logits. Where gradients are recorded, which keep every part, all at once."""
    size = len(logits) if torch.is_grad_enabled() else max(1, ELEMENTS_AT_ONCE // logits.shape[-1])
    for start in range(0, len(logits), max(1, size)):
        rows = slice(start, start + size)
        yield rows, logits[rows].to(_exact(logits))


def _read(logits: Tensor, labels: Tensor, counts: Tensor) -> Outputs:
    """Outputs (B, T) from the logits (labels that count, V), the labels and where they count (B, T)."""
    targets = labels[counts].to(logits.device)
    logprobs, correct = [logits.new_zeros(0, dtype=_exact(logits))], [logits.new_zeros(0, dtype=torch.bool)]
    for rows, part in row_chunks(logits):
        chosen = part.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1)
        logprobs.append(chosen - part.logsumexp(-1))
        correct.append(part.detach().argmax(-1) == targets[rows])
    places = counts.to(logits.device).nonzero(as_tuple=True)
    empty = logprobs[0].new_zeros(counts.shape)
    return Outputs(
        logprobs=empty.index_put(places, torch.cat(logprobs)),
        mask=empty.index_put(places, empty.new_ones(())),
        correct=empty.index_put(places, torch.cat(correct).to(empty.dtype)),
    )


def _with_top_k(outputs: Outputs, teachers: Sequence[TeacherTopK], logits: Tensor, counts: Tensor) -> Outputs:
    """With the log-probabilities of each teacher's top-k tokens; logits (K, V) belong where counts (B, T) is true."""
    ids = torch.from_numpy(np.concatenate([top_k.ids for top_k in teachers])).long().to(logits.device)
    teacher = torch.from_numpy(np.concatenate([top_k.logprobs for top_k in teachers])).to(logits.device, _exact(logits))
    found = [part.gather(-1, ids[rows]) - part.logsumexp(-1, keepdim=True) for rows, part in row_chunks(logits)]
    logprobs = torch.cat([teacher.new_zeros(0, ids.shape[-1]), *found])
    places = counts.to(logits.device).nonzero(as_tuple=True)
    return replace(
        outputs,
        top_k_logprobs=teacher.new_zeros(*counts.shape, ids.shape[-1]).index_put(places, logprobs),
        teacher_logprobs=teacher.new_zeros(*counts.shape, teacher.shape[-1]).index_put(places, teacher),
    )


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _with_features(found: Outputs, shown: Sequence[np.ndarray], states: Tensor, counts: Tensor) -> Outputs:
    """With the model's states (K, layers, width) and the teacher's, which belong where counts (B, T) is true."""
    exact = states.to(_exact(states))
    teacher = torch.from_numpy(np.concatenate(shown)).to(exact)
    places = counts.to(states.device).nonzero(as_tuple=True)
    return replace(
        found,
        features=exact.new_zeros(*counts.shape, *exact.shape[1:]).index_put(places, exact),
        teacher_features=exact.new_zeros(*counts.shape, *teacher.shape[1:]).index_put(places, teacher),
    )


def _inputs(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> dict[str, Any]:
    attention_mask = _pad([[1] * len(s.input_ids) for s in sequences], 0, device)
    input_ids = _pad([s.input_ids for s in sequences], pad_id, device)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}


def _references(sequences: Sequence[TokenSequence], logits: Tensor) -> Tensor | None:
    """(B,), or None when a sequence has none."""
    found = [sequence.reference for sequence in sequences]
    return None if None in found else torch.tensor(found, dtype=_exact(logits), device=logits.device)


def _pad(rows: list[list[int]], value: int, device: torch.device) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)


def _check(sequences: Sequence[TokenSequence], is_encoder_decoder: bool) -> None:
    if not sequences:
        raise ValueError("there are no sequences to run through the model")
    for row, sequence in enumerate(sequences):
        if not sequence.input_ids or not sequence.labels:
            raise ValueError(
                f"sequence {row} has {len(sequence.input_ids)} input ids and {len(sequence.labels)} labels; "
                "each needs at least one: leave such examples out"
            )
        if not is_encoder_decoder and len(sequence.input_ids) != len(sequence.labels):
            raise ValueError(
                f"sequence {row} has {len(sequence.input_ids)} input ids and {len(sequence.labels)} labels; "
                "causal bases need one label per input id (IGNORED where no loss is due)"
            )
