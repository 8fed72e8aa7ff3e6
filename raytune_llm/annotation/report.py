"""What came of an annotation: the lines to write, counts, and how far it is."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytune_llm.annotation.filters import Selection
from raytune_llm.annotation.reading import same
from raytune_llm.annotation.teachers.base import Request, Response
from raytune_llm.data.records import Rationale

LINE_SECONDS = 10.0
"""Between two lines of progress where no terminal redraws one."""


@dataclass
class AnnotationReport:
    """Filled record by record."""

    written: list[dict[str, Any]] = field(default_factory=list)
    num_records: int = 0
    num_unasked: int = 0
    num_taken: int = 0
    num_left_out: int = 0
    num_cut: int = 0
    """Prompts that lost their beginning, being too long for the teacher."""
    num_judged: int = 0
    """Records with a given label about which the teacher's answer could be read."""
    num_right: int = 0
    """Those of them where both labels are the same."""
    thrown_away: Counter[str] = field(default_factory=Counter)
    num_new: int = 0
    num_tokens: int = 0
    """Of prompts and answers asked now."""
    cost_usd: float = 0.0
    """Spent now."""

    @property
    def lines(self) -> str:
        """JSONL."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.written)

    def keep(self, record: Rationale) -> None:
        """A record about which nothing was asked."""
        self.num_records += 1
        self.num_unasked += 1
        self.written.append(_row(record))

    def decide(self, record: Rationale, choice: Selection, origin: Mapping[str, Any], *, num_cut: int) -> None:
        """A record with the teacher's answers."""
        self.num_records += 1
        self.num_cut += num_cut
        if record.label is not None and choice.teacher_label is not None:
            self.num_judged += 1
            self.num_right += same(record.label, choice.teacher_label)
        if choice.reason is not None:
            self.thrown_away[choice.reason] += 1
        else:
            self.num_taken += 1
        if choice.record is None:
            self.num_left_out += 1
        else:
            self.written.append(_row(choice.record) | (dict(origin) if choice.reason is None else {}))

    def asked_now(self, asks: Iterable[Request], known: Mapping[Request, Response]) -> AnnotationReport:
        """With what this job itself asked."""
        said = [known[ask] for ask in asks]
        num_tokens = sum(answer.num_prompt_tokens + answer.num_completion_tokens for answer in said)
        return replace(self, num_new=len(said), num_tokens=num_tokens, cost_usd=sum(answer.cost_usd for answer in said))

    def text(self) -> str:
        """For the terminal."""
        lines = [
            f"records     {self.num_records}: {self.num_taken} with the teacher's answer, "
            f"{self.num_unasked} not asked about, {sum(self.thrown_away.values())} answers thrown away",
            *(f"            {count} {reason}" for reason, count in self.thrown_away.most_common()),
            f"written     {len(self.written)}; {self.num_left_out} left out for want of a label",
        ]
        if self.num_judged:
            share = self.num_right / self.num_judged
            lines.append(f"agreement   the teacher gives the known label in {share:.1%} of {self.num_judged} records")
        if self.num_cut:
            lines.append(
                f"! {self.num_cut} prompts lost their beginning: lower prompt.num_examples or "
                "annotation.max_new_tokens, or take a teacher of longer context"
            )
        lines.append(f"asked now   {self.num_new} questions, {self.num_tokens} tokens, {self.cost_usd:.4f} USD")
        return "\n".join(lines)


class Progress:
    """How many questions are answered, how long the rest takes, what they cost."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._cost_usd = total, 0, 0.0
        self._started = self._said = time.monotonic()
        self._interactive = sys.stderr.isatty()

    def add(self, batch: Mapping[Request, Response]) -> None:
        """Count answers, and say so now and then."""
        self._done += len(batch)
        self._cost_usd += sum(answer.cost_usd for answer in batch.values())
        now = time.monotonic()
        if self._interactive:
            print(
                f"\r{self.line(now - self._started)}\033[K",
                end="" if self._done < self._total else "\n",
                file=sys.stderr,
                flush=True,
            )
        elif now - self._said >= LINE_SECONDS or self._done == self._total:
            self._said = now
            print(self.line(now - self._started), flush=True)

    def line(self, seconds: float) -> str:
        """Done, speed, time left, money spent."""
        rate = self._done / max(seconds, 1e-9)
        left = f"{(self._total - self._done) / rate:.0f} s left, " if self._done < self._total else ""
        return f"answered {self._done}/{self._total}, {rate:.1f}/s, {left}{self._cost_usd:.4f} USD spent"


def _row(record: Rationale) -> dict[str, Any]:
    keys = {"input_text": record.prompt, "output_text": record.label, "rationale": record.rationale}
    return {key: value for key, value in keys.items() if value is not None}
