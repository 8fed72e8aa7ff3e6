"""A base as a reward model: its body with a head that gives one number for a whole sequence.

transformers' AutoModelForSequenceClassification with one label. Most causal architectures have a linear head on the
hidden state of the sequence's last token; encoder-decoder ones read the sequence through both sides and have a head of
two layers at its last EOS. A head that the base doesn't bring begins at 0, so that an untrained reward model scores
everything alike: its pairwise accuracy is chance, its loss log 2, whatever the seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.utils import logging


def heads(model: Any) -> list[str]:
    """Names of a reward model's modules outside its body; none for a language model."""
    if model.get_output_embeddings() is not None:
        return []
    return [name for name, _ in model.named_children() if name != model.base_model_prefix]


def head_sizes(model: Any) -> dict[str, int]:
    """Numbers of weights of a reward model's head by its name, where it is one linear map without bias of the last
    token's hidden state; else none."""
    if not isinstance(model, GenericForSequenceClassification) or model.score.out_features != 1:
        return {}
    return {"score": model.score.in_features}


def score(model: Any, inner: Any, inputs: dict[str, Any], lengths: Sequence[int]) -> Tensor:
    """The score of each right-padded sequence, (B,), fp32 (fp64), differentiable.

    Args:
        model: with its wrappers (PEFT).
        inner: transformers' model inside it.
        lengths: each sequence's own length; it marks the padding, since the pad token may also end a text.
    """
    if isinstance(inner, GenericForSequenceClassification):
        hidden = getattr(inner, inner.base_model_prefix)(**inputs).last_hidden_state
        rows = torch.arange(len(lengths), device=hidden.device)
        last = hidden[rows, torch.tensor(lengths, device=hidden.device) - 1]
        trained = list(inner.score.parameters())[-1]  # PEFT keeps the head it found before its own copy
        found = inner.score(last.to(trained.dtype))
    else:
        padding = inputs["attention_mask"] == 0
        input_ids = inputs["input_ids"].masked_fill(padding, inner.config.get_text_config().pad_token_id)
        found = model(**inputs | {"input_ids": input_ids}).logits
    return (found if found.dtype == torch.float64 else found.float()).squeeze(-1)


def load_scorer(name_or_path: str, tokenizer: Any, *, config: Any, **options: Any) -> Any:
    """The reward model at a path or hub id; the weights of a new head depend on nothing but its shape.

    Some architectures find a sequence's last token by the padding after it, so that is never the token that ends
    answers.
    """
    config.num_labels, config.eos_token_id = 1, tokenizer.eos_token_id
    if (pad_id := tokenizer.pad_token_id) == tokenizer.eos_token_id:
        pad_id = 0 if tokenizer.eos_token_id != 0 else 1
    config.get_text_config().pad_token_id = pad_id
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, config=config, **options, output_loading_info=True
        )
    _clear_new_head(model, loaded["missing_keys"])
    return model


def _clear_new_head(model: Any, missing: Collection[str]) -> None:
    """Put the last layer of the head at 0 if the base didn't bring it."""
    last = [
        (name, module)
        for head in heads(model)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.".startswith(f"{head}.")
    ][-1]
    if f"{last[0]}.weight" in missing:
        for parameter in last[1].parameters():
            nn.init.zeros_(parameter)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warning that the head is new and the output head unused: both are meant."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
