"""One replica of the endpoint: an engine, the versions on offer and the HTTP app over them. Ray Serve makes and checks
it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raytune_llm.data.tokens import Tokens, supply_template
from raytune_llm.job import InputError
from raytune_llm.models.base import Base
from raytune_llm.registry import Registry
from raytune_llm.serving.app import Limits, Service, create_app
from raytune_llm.serving.catalogue import Catalogue, Entry, can_be_more, read_catalogue, with_version
from raytune_llm.serving.engine import EngineChoice, ServedModel
from raytune_llm.serving.errors import ApiError
from raytune_llm.serving.metrics import Metrics
from raytune_llm.serving.quota import Quota

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
    requests_per_minute: int | None
    tokens_per_minute: int | None
    on_demand: bool


class Replica:
    """Loads everything before it counts as started. What can't be loaded is left out and told by `refused`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._registry = Registry(plan.registry_dir)
        self._cache = tempfile.TemporaryDirectory(prefix="raytune_llm_")
        self._engine = plan.engine.load(plan.catalogue.base, max_running=plan.max_running)
        self._models: dict[str, ServedModel] = {}
        self._refused: dict[str, str] = {}
        self._finding = asyncio.Lock()
        for entry in plan.catalogue.entries:
            self._load(entry)
        self._service = Service(
            engine=self._engine,
            catalogue=plan.catalogue.without(list(self._refused)),
            models=self._models,
            limits=plan.limits,
            quota=Quota(requests_per_minute=plan.requests_per_minute, tokens_per_minute=plan.tokens_per_minute),
            metrics=Metrics(uuid.uuid4().hex[:8]),
            find_more=self._find_more,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service, key_hashes=self._plan.key_hashes)

    async def reconfigure(self, user_config: dict[str, list[str]]) -> None:
        """Serve these versions from now on, without a restart; Ray Serve calls it at the start and on each change."""
        await asyncio.to_thread(self._serve_only, user_config["versions"])

    def refused(self) -> dict[str, str]:
        """Why which versions are not served, by id."""
        return self._refused

    def check_health(self) -> None:
        self._engine.check_health()

    def close(self) -> None:
        """Stop decoding."""
        self._engine.close()
        self._cache.cleanup()

    def _serve_only(self, references: Sequence[str]) -> None:
        if list(references) == [version.reference for version in self._service.catalogue.versions]:
            return
        catalogue = read_catalogue(self._registry, references)
        if catalogue.base.facts.revision_hash != self._plan.catalogue.base.facts.revision_hash:
            raise InputError(f"{', '.join(references)}: another base than this endpoint's; deploy another endpoint")
        self._refused.clear()
        for entry in catalogue.entries:
            if entry.id not in self._models:
                self._load(entry)
        self._service.catalogue = catalogue.without(list(self._refused))
        for id in self._models.keys() - {entry.id for entry in catalogue.entries}:
            del self._models[id]
            self._engine.remove(id)

    def _load(self, entry: Entry) -> None:
        try:
            model = read_model(entry, self._plan.catalogue.base, self._registry, Path(self._cache.name))
            self._engine.add(model)
        except InputError as error:
            logger.error("not served: %s", error)
            self._refused[entry.id] = str(error)
        else:
            self._models[model.id] = model

    async def _find_more(self, name: str) -> bool:
        """Load NAME@number of a name that is served here, if the endpoint may. Raises ApiError with the reason when
        that version can't be served."""
        if not (self._plan.on_demand and can_be_more(self._service.catalogue, name)):
            return False
        async with self._finding:
            if self._service.catalogue.find(name) is None:
                try:
                    await asyncio.to_thread(self._add_version, name)
                except InputError as error:
                    raise ApiError(404, str(error), code="model_not_found", param="model") from error
        return True

    def _add_version(self, name: str) -> None:
        catalogue = with_version(self._service.catalogue, self._registry, name)
        entry = catalogue.entries[-1]
        self._load(entry)
        if entry.id in self._refused:
            raise InputError(self._refused.pop(entry.id))
        self._service.catalogue = catalogue


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
