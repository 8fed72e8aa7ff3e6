"""The token that ends answers: a base that never saw its EOS in pretraining can't be taught it by an adapter.

All tokens that pretraining never used share one direction of the output head, so that a frozen head gives them one
probability, whatever the layers below learn: the tuned model would then never stop after an answer, and its loss would
have a floor of log(number of such tokens) nats at each end. The head's rows show it: an unlearned token has a near
twin. Such a base usually has a learned BOS, which separated the documents it was trained on, and which ends answers
then.

Only local safetensors are read, and of a large vocabulary only the neighbours by id, where unused tokens sit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TWIN_DISTANCE = 0.1
"""Rows closer than this share of their length are one direction; learned tokens are an order of magnitude further
apart."""
NEIGHBOURS = 512
"""Rows compared on either side of a token."""


@dataclass(frozen=True)
class EosToken:
    """The token that ends answers, with a note for the user where the base never learned its EOS."""

    token: str
    note: str | None


def find_eos(folder: str, skeleton: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EosToken:
    """The tokenizer's EOS if the base has learned it, else its BOS if it has learned that."""
    eos, bos = tokenizer.eos_token, tokenizer.bos_token
    head = head_tensor(folder, skeleton)
    if head is None or eos is None or is_learned(head, tokenizer.eos_token_id):
        return EosToken(eos, None)
    if bos is not None and bos != eos and is_learned(head, tokenizer.bos_token_id):
        return EosToken(
            bos, f"the base never learned its end token {eos}: answers end with {bos}, which it has learned"
        )
    return EosToken(
        eos,
        f"the base never learned its end token {eos}, nor another one: an adapter can't teach it, so answers may run "
        "on to max_tokens; adapter=full can, or name a token that the base knows by model.eos_token",
    )


def is_learned(head: Any, token_id: int) -> bool:
    """Whether a token's row of the head, a safetensors slice of (V, hidden), has no near twin."""
    import torch

    first = max(0, token_id - NEIGHBOURS)
    rows = torch.as_tensor(head[first : token_id + NEIGHBOURS + 1]).float()
    own = rows[token_id - first]
    distances = (rows - own).norm(dim=1)
    distances[token_id - first] = torch.inf
    return bool(distances.min() > TWIN_DISTANCE * own.norm())


def head_tensor(folder: str, skeleton: PreTrainedModel) -> Any:
    """The output head's weights as a lazy slice, or None where no local safetensors file has them."""
    from safetensors import safe_open

    names = {name for name, _ in named_weights(skeleton, skeleton.get_output_embeddings())}
    if skeleton.config.get_text_config().tie_word_embeddings or not names:
        names |= {name for name, _ in named_weights(skeleton, skeleton.get_input_embeddings())}
    for file in sorted(Path(folder).expanduser().glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found = sorted(names & set(tensors.keys()))
            if found:
                return tensors.get_slice(found[0])
    return None


def named_weights(skeleton: PreTrainedModel, module: Any) -> list[tuple[str, Any]]:
    weights = skeleton.named_parameters(remove_duplicate=False)
    return [(name, weight) for name, weight in weights if module is not None and weight is module.weight]
