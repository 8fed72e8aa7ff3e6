"""A catalog entry with its files and tokenizer on this node."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.models.base import Base
from raytune_llm.serving.catalog import Entry
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.prompts import tuned_form
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_THE_TOKENIZERS = (".safetensors", ".safetensors.index.json", ".bin", "adapter_config.json", "README.md")
"""How files are named that have no influence on a version's tokenizer."""
_tokenizers: weakref.WeakValueDictionary[Set[tuple[str, str]], PreTrainedTokenizerBase] = weakref.WeakValueDictionary()
"""Those in memory, by the names and digests of their files."""


def read_model(entry: Entry, base: Base, registry: Registry, cache_dir: Path) -> ServedModel:
    """Fetch an entry's files to this node and load its tokenizer. What is downloaded below `cache_dir` is removed when
    the model is collected. Raises InputError when the tokenizer is missing."""
    if entry.version is None:
        return _served(entry, None, base, base.tokenizer())
    cache_dir.mkdir(parents=True, exist_ok=True)
    download = tempfile.mkdtemp(dir=cache_dir)
    try:
        folder = registry.local_copy(entry.version, Path(download))
        model = _served(entry, folder, base, _tokenizer(entry.version, folder))
    except BaseException:
        shutil.rmtree(download, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, download, ignore_errors=True)
    return model


def _tokenizer(version: Version, folder: Path) -> PreTrainedTokenizerBase:
    """One for all versions in memory with the same files of it, since a large vocabulary takes tens of MB."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"{version.reference} has no tokenizer_config.json; publish it again with the tokenizer it was tuned with"
        )
    files = frozenset(file for file in version.files.items() if not file[0].endswith(NOT_THE_TOKENIZERS))
    tokenizer = _tokenizers.get(files)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        supply_template(tokenizer)
        _tokenizers[files] = tokenizer
    return tokenizer


def _served(entry: Entry, folder: Path | None, base: Base, tokenizer: PreTrainedTokenizerBase) -> ServedModel:
    facts = base.facts
    tokens = Tokens(tokenizer, max_tokens=facts.max_tokens(None), is_encoder_decoder=facts.is_encoder_decoder)
    form = tuned_form(entry.version.card.probes if entry.version is not None else ())
    return ServedModel(entry.id, entry.kind, folder, tokens, tuple(tokens.stop_ids()), form)
