"""A catalog entry with its files and tokenizer on this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.models.base import Base
from raytune_llm.serving.catalog import Entry
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.prompts import tuned_form
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_model(entry: Entry, base: Base, registry: Registry, cache_dir: Path) -> ServedModel:
    """Fetch an entry's files to this node and load its tokenizer. Raises InputError when that is missing."""
    if entry.version is None:
        return _served(entry, None, base, base.tokenizer())
    from transformers import AutoTokenizer

    folder = registry.local_copy(entry.version, cache_dir)
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"{entry.id} has no tokenizer_config.json; publish it again with the tokenizer it was tuned with"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    supply_template(tokenizer)
    return _served(entry, folder, base, tokenizer)


def _served(entry: Entry, folder: Path | None, base: Base, tokenizer: PreTrainedTokenizerBase) -> ServedModel:
    facts = base.facts
    tokens = Tokens(tokenizer, max_tokens=facts.max_tokens(None), is_encoder_decoder=facts.is_encoder_decoder)
    form = tuned_form(entry.version.card.probes if entry.version is not None else ())
    return ServedModel(entry.id, entry.kind, folder, tokens, tuple(tokens.stop_ids()), form)
