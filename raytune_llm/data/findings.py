"""What the doctor finds in a job's data: one finding a kind of trouble, with the places where it was seen first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


def many(count: int, what: str) -> str:
    """A count and its noun: '1 record', '1,200 records'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class Severity(Enum):
    """What follows from a finding."""

    problem = "problem"
    """Nothing can be learned, or measured, from these data: the job is refused."""
    warning = "warning"
    """The result would be spoilt or misleading; refused where data.strict is set."""
    note = "note"
    """Worth knowing."""


@dataclass(frozen=True)
class Place:
    """Where something was seen."""

    where: str
    """File and line: "train.jsonl:17"."""
    excerpt: str
    """What is there, short, printable."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one split."""

    kind: str
    """A stable name for programs, e.g. "leakage"."""
    severity: Severity
    split: str
    """train, eval, test, or '' for what concerns all."""
    text: str
    """One sentence: what, how often, what to do."""
    count: int | None = None
    """Records that have it."""
    places: tuple[Place, ...] = ()
    """The first few."""
