"""A snapshot of a sweep as lines: for a terminal of any size, and as plain text for a log. Nothing of Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raytune_llm.sweep.snapshot import Snapshot, TrialRow, TrialState
from raytune_llm.sweep.tables import cell, is_number, short_key, text_table
from raytune_llm.training.curves import curve_line
from raytune_llm.training.screen import (
    Line,
    Piece,
    bar,
    cells,
    clipped,
    duration,
    padded,
    short_number,
    wrapped,
)

GAP = 2
BEST = "★"
MARKS = {
    TrialState.running: ("●", "green"),
    TrialState.starting: ("○", "green"),
    TrialState.queued: ("·", "dim"),
    TrialState.complete: ("✓", ""),
    TrialState.early_stopping: ("◆", "dim"),
    TrialState.scheduler: ("■", "dim"),
    TrialState.stopped: ("□", "yellow"),
    TrialState.diverged: ("↯", "red"),
    TrialState.failed: ("✗", "red"),
    TrialState.over: ("◇", "dim"),
    TrialState.unfinished: ("-", "yellow"),
}
UNITS = {"gpu_hours": "GPU hours"}
PLAIN_ROWS = 6
NARROWEST_VALUE = 4
WIDE = 95
"""Columns of a terminal on which there is room for train/loss."""
MOST_PACKS = 8
"""Packs that are listed one by one."""
FEWEST_ROWS = 3
"""Trials shown on however low a terminal."""


def draw(snapshot: Snapshot, seconds: float, width: int, height: int) -> list[Line]:
    """The sweep on a terminal of this size, so many seconds after the snapshot."""
    head = [*title(snapshot, width), *header(snapshot, seconds, width)]
    if not snapshot.rows:
        return head[: max(1, height)]
    room = height - len(head) - 3
    if room < FEWEST_ROWS:
        head, room = head[: max(1, height - 2 - FEWEST_ROWS)], FEWEST_ROWS
    rows = chosen(snapshot, room)
    lines = [*head, (), *table(snapshot, rows, width), *more(snapshot, rows, width)]
    return lines[: max(1, height)]


def title(snapshot: Snapshot, width: int) -> list[Line]:
    """What runs, and how it is steered."""
    name = Piece(f"{snapshot.title} sweep", "bold")
    if not snapshot.control:
        return wrapped([name], width)
    command = f"steer it: {snapshot.control} action=…"
    if cells(name.text) + cells(command) + len(" · ") <= width:
        return wrapped([name, Piece(command, "dim")], width)
    return [*wrapped([name], width), *wrapped([Piece(word, "dim") for word in command.split(" ")], width, " ")]


def header(snapshot: Snapshot, seconds: float, width: int) -> list[Line]:
    """How far it is, what it has cost, what it runs on, and the best so far."""
    lines = wrapped(progress(snapshot), width)
    lines += wrapped(costs(snapshot, seconds), width)
    lines += wrapped(devices(snapshot), width)
    if snapshot.best is not None:
        lines.append((Piece(clipped(f"{BEST} best {best_text(snapshot)}", width), "bold green"),))
    if snapshot.ending:
        lines += wrapped([Piece(f"ending: {snapshot.ending}", "yellow")], width)
    return lines


def progress(snapshot: Snapshot) -> list[Piece]:
    """A bar of the steps that are no longer to do, and how many trials there are of each kind."""
    share = snapshot.steps_done / max(1, snapshot.steps_total)
    unfinished = snapshot.counts.get(TrialState.unfinished, 0)
    to_come = snapshot.num_trials - snapshot.num_ended - snapshot.num_running - unfinished
    parts = [Piece(f"{bar(share, 20)} {100 * share:.0f} %", "cyan")]
    parts.append(Piece(f"{snapshot.num_ended} of {snapshot.num_trials} trials ended"))
    if snapshot.num_running:
        parts.append(Piece(f"{snapshot.num_running} running", "green"))
    if to_come > 0:
        parts.append(Piece(f"{to_come} to come"))
    for state in (TrialState.unfinished, TrialState.failed, TrialState.diverged):
        if snapshot.counts.get(state):
            parts.append(Piece(f"{snapshot.counts[state]} {state.value}", MARKS[state][1]))
    return parts


def costs(snapshot: Snapshot, seconds: float = 0.0) -> list[Piece]:
    """Time and money, used and left."""
    parts = [Piece(f"{duration(snapshot.seconds + seconds)} so far")]
    if snapshot.seconds_left is not None:
        parts.append(Piece(f"at most {duration(max(0.0, snapshot.seconds_left - seconds))} left"))
    if snapshot.gpu_hours:
        parts.append(Piece(f"{short_number(snapshot.gpu_hours)} GPU hours"))
    if snapshot.usd is not None:
        parts.append(Piece(f"${snapshot.usd:.2f}"))
    for name, used, limit in snapshot.budget:
        style = "yellow" if used >= 0.9 * limit else ""
        left, most = short_number(max(0.0, limit - used)), short_number(limit)
        amount = f"${left} of ${most}" if name == "usd" else f"{left} of {most} {UNITS.get(name, name)}"
        parts.append(Piece(f"budget: {amount} left", style))
    return parts


def devices(snapshot: Snapshot) -> list[Piece]:
    """Where trials run, how full that is, and how fast."""
    parts = [Piece(snapshot.where)] if snapshot.where else []
    loads, running = snapshot.loads, snapshot.counts.get(TrialState.running, 0)
    running += snapshot.counts.get(TrialState.starting, 0)
    if 1 < len(loads) <= MOST_PACKS:
        each = " ".join(f"{load.used}/{load.slots}" for load in loads)
        parts.append(Piece(f"slots in use: {each}"))
    elif loads:
        parts.append(Piece(f"{sum(load.used for load in loads)} of {sum(load.slots for load in loads)} slots in use"))
    elif snapshot.most_live is not None:
        parts.append(Piece(f"{running} of {snapshot.most_live} places in use"))
    if snapshot.steps_per_second > 0:
        parts.append(Piece(f"{short_number(snapshot.steps_per_second)} steps/s"))
    if snapshot.tokens_per_second > 0:
        parts.append(Piece(f"{short_number(snapshot.tokens_per_second)} tokens/s"))
    return parts


def best_text(snapshot: Snapshot) -> str:
    """The best report so far, and the values of its trial where that is shown."""
    best = snapshot.best
    assert best is not None
    values = next((row.values for row in snapshot.rows if row.id == best.trial), {})
    point = "".join(f", {short_key(key)} {cell(value)}" for key, value in values.items())
    return f"{snapshot.objective.metric} {cell(best.value)} at step {best.step}: {best.trial}{point}"


def chosen(snapshot: Snapshot, room: int) -> list[TrialRow]:
    """The trials that so many lines show: the best third, then those that run, then the best of the others; in the
    snapshot's order."""
    rows = snapshot.rows
    ranked = [*rows[: max(1, room // 3)], *(row for row in rows if row.state.is_live), *rows]
    ids = list(dict.fromkeys(row.id for row in ranked))[: max(1, room)]
    return [row for row in rows if row.id in set(ids)]


def more(snapshot: Snapshot, rows: Sequence[TrialRow], width: int) -> list[Line]:
    """A line of the trials that aren't shown; those to come are in the header."""
    shown = [row.state for row in rows]
    left = {state: count - shown.count(state) for state, count in snapshot.counts.items() if count > shown.count(state)}
    if not left:
        return []
    kinds = ", ".join(f"{count} {state.value}" for state, count in sorted(left.items(), key=lambda item: -item[1]))
    return [(Piece(clipped(f"… and {sum(left.values())} more: {kinds}", width), "dim"),)]


@dataclass(frozen=True)
class Column:
    """A column of the table of trials."""

    name: str
    texts: Sequence[str]
    style: Callable[[TrialRow], str] = lambda row: ""
    narrowest: int | None = None
    """Columns that it may be reduced to; None = never."""
    priority: int = 0
    """Of columns that don't fit the highest is dropped first."""

    @property
    def needed(self) -> int:
        return max(map(cells, [self.name, *self.texts]))

    @property
    def least(self) -> int:
        """Columns without which its contents are cut."""
        return self.needed if self.narrowest is None else min(self.needed, self.narrowest)


def table(snapshot: Snapshot, rows: Sequence[TrialRow], width: int) -> list[Line]:
    """The trials, one a line, in columns that fit."""
    columns = fitting(columns_of(snapshot, rows, width), width)
    widths = shared(columns, width)
    lines: list[Line] = [
        (Piece(" ".ljust(GAP).join(padded(c.name, w, right=is_numeric(c)) for c, w in widths), "dim"),),
    ]
    for place, row in enumerate(rows):
        is_best = snapshot.best is not None and row.id == snapshot.best.trial
        pieces: list[Piece] = []
        for column, wide in widths:
            style = column.style(row)
            style = f"bold {style}".strip() if is_best else style
            pieces += [Piece(padded(column.texts[place], wide, right=is_numeric(column)), style), Piece(" " * GAP)]
        lines.append(tuple(pieces[:-1]))
    return lines


def columns_of(snapshot: Snapshot, rows: Sequence[TrialRow], width: int) -> list[Column]:
    """All that there is to show of trials, in order."""

    def mark(row: TrialRow) -> str:
        star = BEST if snapshot.best is not None and row.id == snapshot.best.trial else " "
        return f"{star}{MARKS[row.state][0]}"

    def style(row: TrialRow) -> str:
        return MARKS[row.state][1]

    curve_width = max(8, min(32, (width - 60) // 3))
    curves = [curve_line(row.curve, snapshot.scale, snapshot.objective, curve_width) for row in rows]
    columns = [
        Column("", [mark(row) for row in rows], style),
        Column("trial", [row.id for row in rows], style),
        Column("step", [f"{row.step}/{row.steps}" for row in rows], priority=3),
        Column(snapshot.objective.metric, [number(row.last) for row in rows], narrowest=9, priority=4),
        Column("best", [number(row.best) for row in rows]),
        Column("curve", curves, lambda row: "cyan", priority=5),
        Column("state", [row.state.value for row in rows], style, narrowest=8, priority=2),
    ]
    if width >= WIDE and any(row.train_loss is not None for row in rows):
        columns.insert(5, Column("train/loss", [number(row.train_loss) for row in rows], priority=7))
    for key, texts in values_of(snapshot, rows).items():
        longest = max(map(cells, texts))
        columns.append(Column(short_key(key), texts, narrowest=max(NARROWEST_VALUE, min(longest, 12)), priority=6))
    return columns


def values_of(snapshot: Snapshot, rows: Sequence[TrialRow]) -> Mapping[str, list[str]]:
    """The trials' values of each key that one of them has, those of the space first."""
    keys = [key for key in dict.fromkeys([*snapshot.keys, *(key for row in rows for key in row.values)])]
    found = {key: [cell(row.values[key]) if key in row.values else "" for row in rows] for key in keys}
    return {key: texts for key, texts in found.items() if any(texts)}


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns without those for which there is no room."""
    kept = list(columns)
    while len(kept) > 2 and sum(column.least + GAP for column in kept) - GAP > width:
        worst = max(column.priority for column in kept)
        kept.remove([column for column in kept if column.priority == worst][-1])
    return kept


def shared(columns: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    """The columns with their widths: what is left over goes to those that need it, to all alike."""
    widths = [column.least for column in columns]
    left = width - sum(widths) - GAP * (len(columns) - 1)
    while left > 0 and (short := [place for place, column in enumerate(columns) if widths[place] < column.needed]):
        for place in short[:left]:
            widths[place] += 1
        left -= len(short)
    return list(zip(columns, widths, strict=True))


def is_numeric(column: Column) -> bool:
    return all(is_number(text) for text in column.texts if text) and any(column.texts)


def number(value: float | None) -> str:
    return "" if value is None else "nan" if math.isnan(value) else cell(float(value))


def plain_text(snapshot: Snapshot) -> str:
    """The sweep for a log: a line or two, and the best trials."""
    facts = [*progress(snapshot)[1:], *costs(snapshot), *devices(snapshot)[1:]]
    lines = ["", ", ".join(piece.text for piece in facts)]
    rows = [row for row in snapshot.rows if row.best is not None][:PLAIN_ROWS]
    if not rows:
        return "\n".join(lines)
    values = values_of(snapshot, rows)
    metric = snapshot.objective.metric
    columns = ["trial", *map(short_key, values), "step", "train/loss", metric, "best", ""]
    table = [
        [
            row.id,
            *(texts[place] for texts in values.values()),
            f"{row.step}/{row.steps}",
            number(row.train_loss),
            number(row.last),
            number(row.best),
            row.state.value,
        ]
        for place, row in enumerate(rows)
    ]
    return "\n".join([*lines, text_table(columns, table)])
