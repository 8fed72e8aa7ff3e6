"""Commands for notebooks and other programs: composed like the command line, then run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.jobs import config, invocation
from raytune_llm.jobs.schema import JOBS
from raytune_llm.stores.choices import nearest_first


@dataclass(frozen=True)
class Command:
    """A command with its job, which isn't run yet."""

    name: str
    """check, import_openai, annotate, train, sweep, evaluate, serve, registry, control or demo."""
    job: Any
    """What it does: a typed, frozen job of jobs/schema.py."""
    overrides: tuple[str, ...] = ()
    """That it was composed with."""

    def run(self) -> int:
        """Run it here, as jobs/<name>.py does; returns its exit status. Raises InputError for errors caused by user
        input."""
        from raytune_llm.jobs import commands

        invocation.note(self.name, self.overrides)
        return int(getattr(commands, self.name)(self.job))


def compose(command: str, overrides: Sequence[str] = ()) -> Command:
    """A command with its job, from conf/<command>.yaml and overrides as on the command line. Raises InputError.

    compose("train", ["model=demo", "data=demo_sarcasm", "tuning.steps=50"]).run()
    """
    if command not in JOBS:
        known = ", ".join(nearest_first(command, tuple(JOBS)))
        raise InputError(f"unknown command: {command}; allowed, nearest first: {known}")
    return Command(command, config.load(command, overrides), tuple(overrides))
