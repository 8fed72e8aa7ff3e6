"""The one pass over a split's records that feeds all checks of records: by several processes where they are many.

A process counts over a block of records and sends its counts back; they are merged in the blocks' order, so that the
result is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from raytune_llm.data.doctor.facts import Facts
from raytune_llm.data.doctor.instruction import Instruction
from raytune_llm.data.doctor.keys import Keys
from raytune_llm.data.doctor.labels import Labels
from raytune_llm.data.doctor.lacking import Lacking
from raytune_llm.data.doctor.language import Languages, Scripts
from raytune_llm.data.doctor.preferences import Preferences
from raytune_llm.data.doctor.secrets import Secrets
from raytune_llm.data.doctor.texts import Texts
from raytune_llm.data.doctor.tools import ToolCalls
from raytune_llm.data.doctor.truncation import Cuts
from raytune_llm.data.doctor.view import Check, View
from raytune_llm.data.encoding.workers import BLOCK_RECORDS, MANY_RECORDS, map_batches, num_cpus
from raytune_llm.data.progress import RecordProgress

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens


@dataclass(frozen=True)
class Checks:
    """All checks of records."""

    facts: Facts
    keys: Keys
    labels: Labels
    preferences: Preferences
    scripts: Scripts
    languages: Languages
    others: tuple[Check, ...]

    @classmethod
    def of(cls, view: View, instruction: Instruction) -> Self:
        """Before the first record."""
        others = (Cuts(view, instruction), Lacking(view), Texts(view), ToolCalls(view), Secrets(view))
        return cls(
            facts=Facts(view),
            keys=Keys(view),
            labels=Labels(view),
            preferences=Preferences(view),
            scripts=Scripts(view),
            languages=Languages(view, instruction),
            others=others,
        )

    @property
    def all(self) -> tuple[Check, ...]:
        """In the order of the report."""
        counts = (self.labels, self.preferences, self.facts, self.keys, self.scripts, self.languages)
        return (*self.others, *counts)

    def see(self, view: View) -> None:
        """Count all records of a view."""
        see: list[Callable[..., None]] = [check.see for check in self.all]
        for seen in view:
            for look in see:
                look(seen)

    def merge(self, later: Checks) -> None:
        """Count what others counted of the records after these."""
        for mine, its in zip(self.all, later.all, strict=True):
            mine.merge(its)


def look_through(view: View, instruction: Instruction) -> Checks:
    """The checks of a split, after its last record."""
    checks = Checks.of(view, instruction)
    if view.total < MANY_RECORDS:
        checks.see(view)
        return checks
    run = partial(see_block, tokens=view.tokens, instruction=instruction)
    blocks = (view.part(first, first + BLOCK_RECORDS) for first in range(0, view.total, BLOCK_RECORDS))
    progress = RecordProgress(f"examining data.{view.name}", view.total)
    try:
        for found in map_batches(run, blocks, num_cpus()):
            checks.merge(found)
            progress.add(len(found.keys.whole))
    finally:
        progress.close()
    return checks


def see_block(block: View, *, tokens: Tokens | None, instruction: Instruction) -> Checks:
    """The checks of a part of a split, counted by the process that this is called in."""
    view = replace(block, tokens=tokens)
    checks = Checks.of(view, instruction)
    checks.see(view)
    return checks
