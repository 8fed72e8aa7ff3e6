"""The bases that a tuning service offers, composed as its jobs compose them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.models.base import Base
from raytune_llm.service import planning
from raytune_llm.service.config import Service
from raytune_llm.service.planning import DataFacts, Planned
from raytune_llm.service.records import TuningRequest
from raytune_llm.stores.quoting import override

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ANY_DATA = "data.train=-"
"""A job has data; which doesn't matter here."""


def offered_bases(service: Service) -> dict[str, Base]:
    """The bases by their names, each read as far as it can be without its weights. Raises InputError for one that
    isn't there, and for an override that no job takes."""
    try:
        overrides = [override(key, value) for key, value in planning.flat(service.overrides)]
    except InputError as error:
        raise InputError(f"service.overrides: {error}") from error
    return {name: _base(name, overrides) for name in dict.fromkeys(service.models)}


def _base(name: str, overrides: Sequence[str]) -> Base:
    if not NAME.fullmatch(name):
        raise InputError(f"model={name}: expected the name of a file of conf/model, e.g. model=demo")
    try:
        job: SweepJob = load("sweep", [f"model={name}", ANY_DATA, *overrides])
        assert job.model.facts.revision_hash
    except InputError as error:
        given = f", with {' '.join(overrides)}" if overrides else ""
        raise InputError(f"model={name} can't be offered{given}: {error}") from error
    return job.model


@dataclass(frozen=True)
class Planner:
    """From requests to commands, for one service."""

    service: Service
    home: str
    bases: dict[str, Base]

    def check_command(self, request: TuningRequest, folder: str) -> tuple[str, ...]:
        """The command that checks a request's files and writes report.json into a folder."""
        return planning.check_command(request, self.service, self.home, folder)

    def plan(self, request: TuningRequest, facts: DataFacts, *, has_gpu: bool) -> Planned:
        """What runs it. Raises ApiError 400."""
        teachers = {name: base.name_or_path for name, base in self.bases.items()}
        return planning.plan(request, facts, self.service, self.home, has_gpu=has_gpu, teachers=teachers)
