"""No judge: answers are compared with the references alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NoJudge:
    """Nobody judges."""

    def open(self) -> None:
        return None
