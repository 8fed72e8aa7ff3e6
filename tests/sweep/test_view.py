"""A running sweep on terminals of many sizes, and in a log."""

import math
import re
from collections import Counter

import pytest

from raytune_llm.sweep.snapshot import BestReport, Load, Snapshot, TrialRow, TrialState
from raytune_llm.sweep.view import MARKS, draw, plain_text
from raytune_llm.training.objective import Objective
from raytune_llm.training.screen import cells, plain

LOSS = Objective("eval/loss", lower_is_better=True)
RATE, SIZE = "tuning.learning_rate_multiplier", "tuning.adapter_size"


def row(place, state=TrialState.running, curve=(2.0, 1.5, 1.0), **more):
    known = {
        "id": f"t{place:04d}",
        "values": {RATE: 3.0, SIZE: 4},
        "state": state,
        "step": 10 * len(curve),
        "steps": 100,
        "last": curve[-1] if curve else None,
        "best": min(curve) if curve else None,
        "train_loss": 0.5 if curve else None,
        "curve": tuple(curve),
    }
    return TrialRow(**known | more)


def snapshot(*rows, counts=None, **more):
    states = Counter(row.state for row in rows) if counts is None else counts
    known = {
        "title": "demo/r1",
        "control": "raytune-llm control run=demo/r1 home=/home/me/raytune_llm",
        "objective": LOSS,
        "keys": (RATE, SIZE),
        "rows": rows,
        "counts": states,
        "num_trials": sum(states.values()) + 5,
        "steps_done": 400,
        "steps_total": 1000,
        "best": None,
        "scale": (0.5, 2.0),
        "seconds": 90.0,
        "seconds_left": 600.0,
        "gpu_hours": 0.25,
        "usd": 1.5,
        "budget": (("usd", 1.5, 20.0), ("gpu_hours", 0.25, 2.0)),
        "where": "2 packs on a GPU each",
        "loads": (Load(16, 16), Load(3, 16)),
        "most_live": 32,
        "steps_per_second": 12.5,
        "tokens_per_second": 41234.0,
        "ending": "",
    }
    return Snapshot(**known | more)


def several():
    return [
        row(7, curve=(2.0, 0.6), best=0.6),
        row(1, TrialState.complete),
        row(2, TrialState.scheduler, (2.0, 1.9)),
        row(3, TrialState.diverged, (2.0, math.nan), best=2.0),
        row(4, TrialState.failed, ()),
        row(5, TrialState.starting, ()),
        row(6, TrialState.queued, ()),
    ]


def many(count):
    rows = [row(place, TrialState.scheduler, (2.0, 1 + place / 1000)) for place in range(count)]
    rows[150] = row(150, TrialState.running, (2.0, 1.15))
    return rows


SIZES = [(40, 12), (60, 20), (80, 24), (100, 30), (160, 50), (200, 60)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("rows", [[], several(), many(200)], ids=["none", "several", "many"])
def test_every_size_is_kept(width, height, rows):
    best = BestReport(trial=rows[0].id, step=20, value=0.6) if rows else None
    lines = draw(snapshot(*rows, best=best, ending="sweep.budget.usd=20 is used up"), 0.0, width, height)
    assert len(lines) <= height
    assert all(cells("".join(piece.text for piece in line)) <= width for line in lines)
    assert "demo/r1 sweep" in plain(lines)


def test_each_state_has_a_mark_of_its_own():
    assert len({mark for mark, _ in MARKS.values()}) == len(TrialState)
    text = plain(draw(snapshot(*several(), best=BestReport(trial="t0007", step=20, value=0.6)), 0.0, 120, 40))
    found = {line[2:10].split()[0]: line[:2] for line in text.splitlines() if re.match(r"..  t\d{4}", line)}
    assert found == {
        "t0007": "★●",
        "t0001": " ✓",
        "t0002": " ■",
        "t0003": " ↯",
        "t0004": " ✗",
        "t0005": " ○",
        "t0006": " ·",
    }
    assert re.search(r"t0003 +20/100 +nan +2 .*diverged", text)
    assert re.search(r"t0005 +0/100 +starting", text)


def test_the_header_says_how_far_what_it_costs_and_where():
    text = plain(draw(snapshot(*several(), best=BestReport(trial="t0007", step=20, value=0.6)), 30.0, 200, 40))
    for part in (
        "raytune-llm control run=demo/r1 home=/home/me/raytune_llm action=…",
        "40 % · 4 of 12 trials ended · 2 running · 6 to come · 1 failed · 1 diverged",
        "2 min so far · at most 10 min left · 0.25 GPU hours · $1.50",
        "budget: $18.5 of $20 left · budget: 1.75 of 2 GPU hours left",
        "2 packs on a GPU each · slots in use: 16/16 3/16 · 12.5 steps/s · 41.2k tokens/s",
        "★ best eval/loss 0.6 at step 20: t0007, learning_rate_multiplier 3, adapter_size 4",
    ):
        assert part in text


def test_of_many_trials_the_best_and_those_that_run_are_shown():
    lines = plain(draw(snapshot(*many(200), num_trials=200), 0.0, 80, 24)).splitlines()
    ids = re.findall(r"t\d{4}", "\n".join(lines))
    assert ids == sorted(ids) and ids[0] == "t0000" and "t0150" in ids and len(lines) == 24
    assert lines[-1] == f"… and {200 - len(ids)} more: {200 - len(ids)} scheduler"


def test_long_and_wide_names_are_cut():
    names = {RATE: "a" * 300, "data.train": "数据" * 50}
    for width in (60, 80, 200):
        lines = draw(snapshot(row(1, values=names), row(2), title="n" * 300), 0.0, width, 30)
        assert all(cells("".join(piece.text for piece in line)) <= width for line in lines)
    assert "…" in plain(lines)


def test_values_of_narrow_terminals_make_room_for_the_rest():
    wide, narrow = (plain(draw(snapshot(*several()), 0.0, width, 40)) for width in (160, 44))
    assert "learning_rate_multiplier" in wide and "train/loss" in wide and "▁" in wide
    assert "adapter_size" not in narrow and "t0007" in narrow and "0.6" in narrow


def test_a_log_gets_no_colours_and_no_bars():
    text = plain_text(snapshot(*several()))
    assert "\x1b" not in text and "█" not in text and "●" not in text
    header, columns, _, first = text.splitlines()[1:5]
    assert header.startswith(
        "4 of 12 trials ended, 2 running, 6 to come, 1 failed, 1 diverged, 90 s so far, at most 10"
    )
    assert columns.split() == [
        "trial",
        "learning_rate_multiplier",
        "adapter_size",
        "step",
        "train/loss",
        "eval/loss",
        "best",
    ]
    assert first.split() == ["t0007", "3", "4", "20/100", "0.5", "0.6", "0.6", "running"]
    assert plain_text(snapshot()).count("\n") == 1
