"""The outcome of an annotation: the records to write, counts, cost; and progress meanwhile."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytune_llm.annotation.filters import Selection
from raytune_llm.annotation.reading import is_same_label
from raytune_llm.annotation.teachers.base import Request, Response
from raytune_llm.data.records import Rationale

LINE_SECONDS = 10.0
"""Between two lines of progress in a log; a terminal redraws one line."""


@dataclass
class AnnotationReport:
    """Filled record by record."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """The records to write."""
    num_records: int = 0
    num_annotated: int = 0
    """Records with an accepted answer of the teacher."""
    num_skipped: int = 0
    """Records for which no request was made."""
    num_dropped: int = 0
    """Records that are not written."""
    num_cut: int = 0
    """Prompts whose beginning was cut off, being too long for the teacher."""
    num_compared: int = 0
    """Records that have both a given label and one of the teacher."""
    num_agreeing: int = 0
    """Those of them whose labels are the same."""
    rejections: Counter[str] = field(default_factory=Counter)
    """Records with a rejected answer, by the reason."""
    num_new_requests: int = 0
    """Requests that this job sent; the others were in the cache."""
    num_tokens: int = 0
    """Of those requests, prompts and completions."""
    cost_usd: float = 0.0
    """Of those requests."""

    @property
    def lines(self) -> str:
        """The records as JSONL."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)

    def skip(self, record: Rationale) -> None:
        """Add a record for which no request was made."""
        self.num_records += 1
        self.num_skipped += 1
        self.rows.append(_row(record))

    def add(self, record: Rationale, selection: Selection, origin: Mapping[str, Any], *, num_cut: int) -> None:
        """Add a record with the outcome of its answers; `origin` is written with an accepted one."""
        self.num_records += 1
        self.num_cut += num_cut
        if record.label is not None and selection.teacher_label is not None:
            self.num_compared += 1
            self.num_agreeing += is_same_label(record.label, selection.teacher_label)
        if selection.rejection is not None:
            self.rejections[selection.rejection] += 1
        else:
            self.num_annotated += 1
        if selection.record is None:
            self.num_dropped += 1
        else:
            self.rows.append(_row(selection.record) | (dict(origin) if selection.rejection is None else {}))

    def with_usage(self, new: Iterable[Request], known: Mapping[Request, Response]) -> AnnotationReport:
        """The report with the tokens and cost of the requests that this job sent."""
        responses = [known[request] for request in new]
        return replace(
            self,
            num_new_requests=len(responses),
            num_tokens=sum(one.num_prompt_tokens + one.num_completion_tokens for one in responses),
            cost_usd=sum(one.cost_usd for one in responses),
        )

    def text(self) -> str:
        """For the terminal."""
        lines = [
            f"records     {self.num_records}: {self.num_annotated} annotated, {self.num_skipped} skipped, "
            f"{self.rejections.total()} answers rejected",
            *(f"            {rejection}: {count}" for rejection, count in self.rejections.most_common()),
            f"written     {len(self.rows)}, {self.num_dropped} dropped without a label",
        ]
        if self.num_compared:
            share = self.num_agreeing / self.num_compared
            lines.append(f"agreement   {share:.1%} of {self.num_compared} given labels match the teacher's")
        if self.num_cut:
            lines.append(
                f"! {self.num_cut} prompts were too long for the teacher and lost their beginning; lower "
                "prompt.num_examples or annotation.max_new_tokens, or choose a teacher with a longer context"
            )
        lines.append(f"requests    {self.num_new_requests} new, {self.num_tokens} tokens, {self.cost_usd:.4f} USD")
        return "\n".join(lines)


class Progress:
    """Responses received, time left and cost: one line that a terminal redraws, or a line now and then in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._cost_usd = total, 0, 0.0
        self._started = self._printed = time.monotonic()
        self._interactive = sys.stderr.isatty()

    def add(self, batch: Mapping[Request, Response]) -> None:
        """Count a batch of responses, and print when it is time."""
        self._done += len(batch)
        self._cost_usd += sum(response.cost_usd for response in batch.values())
        now = time.monotonic()
        if self._interactive:
            print(
                f"\r{self.line(now - self._started)}\033[K",
                end="" if self._done < self._total else "\n",
                file=sys.stderr,
                flush=True,
            )
        elif now - self._printed >= LINE_SECONDS or self._done == self._total:
            self._printed = now
            print(self.line(now - self._started), flush=True)

    def line(self, seconds: float) -> str:
        """Count, speed, time left, cost."""
        rate = self._done / max(seconds, 1e-9)
        left = f"{(self._total - self._done) / rate:.0f} s left, " if self._done < self._total else ""
        return f"responses {self._done}/{self._total}, {rate:.1f}/s, {left}{self._cost_usd:.4f} USD"


def _row(record: Rationale) -> dict[str, Any]:
    keys = {"input_text": record.prompt, "output_text": record.label, "rationale": record.rationale}
    return {key: value for key, value in keys.items() if value is not None}
