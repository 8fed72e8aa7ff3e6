"""From a request to the command that runs it, with what it is expected to take."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.service.config import Service
from raytune_llm.service.records import Estimate, TuningRequest


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the data check found in a job's files (report.json)."""

    train_records: int
    train_tokens: int
    """Of one pass over the training set, prompts and completions, cut as they are trained on."""
    parameters: int
    """Of the base."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job's command."""

    command: tuple[str, ...]
    """("raytune-llm", "sweep", "home=…", …): what anybody can run by hand."""
    estimate: Estimate


def check_command(request: TuningRequest, service: Service, home: str, folder: str) -> tuple[str, ...]:
    """The command that checks a request's files and writes report.json into a folder."""
    raise NotImplementedError


def plan(request: TuningRequest, facts: DataFacts, service: Service, home: str, *, has_gpu: bool) -> Planned:
    """`train` where every hyperparameter has a value, `sweep` over those that are "auto". Raises ApiError 400 for a
    value that the command would refuse."""
    raise NotImplementedError
