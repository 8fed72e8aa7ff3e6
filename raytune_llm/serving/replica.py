"""One replica of the endpoint: an engine, the versions on offer and the HTTP app over them. Ray Serve makes and checks
it."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raytune_llm.data.tokens import Tokens, supply_template
from raytune_llm.job import InputError
from raytune_llm.models.base import Base
from raytune_llm.registry import Registry
from raytune_llm.serving.app import Limits, Service, create_app
from raytune_llm.serving.catalogue import Catalogue, Entry
from raytune_llm.serving.engine import EngineChoice, ServedModel

if TYPE_CHECKING:
    from fastapi import FastAPI
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every replica of an endpoint is made from; crosses to other nodes."""

    catalogue: Catalogue
    registry_dir: str
    engine: EngineChoice
    limits: Limits
    max_running: int
    key_hashes: tuple[str, ...]


class Replica:
    """Loads everything before it counts as started. What can't be loaded is left out and told by `refused`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine = plan.engine.load(plan.catalogue.base, max_running=plan.max_running)
        self._models: dict[str, ServedModel] = {}
        self._refused: dict[str, str] = {}
        registry = Registry(plan.registry_dir)
        with tempfile.TemporaryDirectory(prefix="raytune_llm_") as cache_dir:
            for entry in plan.catalogue.entries:
                try:
                    self._add(read_model(entry, plan.catalogue.base, registry, Path(cache_dir)))
                except InputError as error:
                    logger.error("not served: %s", error)
                    self._refused[entry.id] = str(error)

    def __serve_build_asgi_app__(self) -> FastAPI:
        service = Service(
            engine=self._engine,
            catalogue=self._plan.catalogue.without(list(self._refused)),
            models=self._models,
            limits=self._plan.limits,
        )
        return create_app(service, key_hashes=self._plan.key_hashes)

    def refused(self) -> dict[str, str]:
        """Why which versions are not served, by id."""
        return self._refused

    def check_health(self) -> None:
        self._engine.check_health()

    def _add(self, model: ServedModel) -> None:
        self._engine.add(model)
        self._models[model.id] = model


def read_model(entry: Entry, base: Base, registry: Registry, cache_dir: Path) -> ServedModel:
    """A catalogue's entry with its files on this node. Raises InputError when its tokenizer is missing."""
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
    return ServedModel(entry.id, entry.kind, folder, tokens, tuple(tokens.stop_ids()))
