"""A sweep's timeline: in which lane each time of training is drawn. Lanes of a process or device are its slots: as many
as trials were there at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.jobs.report.data import Span, TrialRun


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A time of training in its lane."""

    trial: TrialRun
    span: Span
    lane: str
    is_last: bool
    """Whether the trial ended with it."""


def bars_of(trials: Sequence[TrialRun]) -> list[Bar]:
    """All times of training, by lane and start."""
    groups: dict[str, list[tuple[TrialRun, Span]]] = defaultdict(list)
    names = _groups([span for trial in trials for span in trial.spans])
    for trial in trials:
        for span in trial.spans:
            groups[names[_place(span)]].append((trial, span))
    found = []
    for name, members in groups.items():
        members.sort(key=lambda member: (member[1].start, member[0].id))
        free: list[float] = []
        for trial, span in members:
            lane = next((place for place, until in enumerate(free) if until <= span.start), len(free))
            free[lane : lane + 1] = [span.end]
            is_last = span is trial.spans[-1]
            found.append(Bar(trial=trial, span=span, lane=f"{name}{lane + 1}", is_last=is_last))
    return found


def _place(span: Span) -> tuple[str, str, int | None]:
    return span.host, span.device, span.process


def _groups(spans: Sequence[Span]) -> dict[tuple[str, str, int | None], str]:
    """What is drawn together: processes that several trials shared are packs with slots; the others of a device share
    its lanes."""
    counts: dict[tuple[str, str, int | None], int] = defaultdict(int)
    for span in sorted(spans, key=lambda span: span.start):
        counts[_place(span)] += 1
    packs = [place for place, count in counts.items() if count > 1 and place[2] is not None]
    hosts = {host for host, _, _ in counts}
    found = {}
    for place in counts:
        host, device, _ = place
        where = " ".join(filter(None, [device or "trials", f"on {host}" if len(hosts) > 1 else ""]))
        pack = f" · pack {packs.index(place) + 1}" if place in packs and len(packs) > 1 else ""
        found[place] = f"{where}{pack} · "
    return found
