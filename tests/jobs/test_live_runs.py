"""Runs on a terminal, from the command to the prompt: what their user sees, and Ctrl-C."""

import subprocess
import sys
from pathlib import Path

import pytest
from terminals import Terminal
from worlds import write_base, write_records

pytestmark = pytest.mark.slow  # whole runs on real Ray

ROOT = Path(__file__).parents[2]
RUN = (
    "run=r1",
    "name=live",
    "tuning.batch_size=4",
    "tuning.early_stopping.patience=null",
    "model.learning_rate=1e-2",
    "evaluation.max_new_tokens=4",
)
SWEEP = ("sweep.space.tuning.adapter_size=[2,4]", "sweep.space.tuning.learning_rate_multiplier=[1.0]")
SECONDS = 300.0


@pytest.fixture
def world(tmp_path):
    write_base(tmp_path / "base", "llama")
    write_records(tmp_path / "data")
    return tmp_path


def arguments(world, command, *more):
    data = (f"data.{name}={world}/data/{name}.jsonl" for name in ("train", "eval"))
    base = f"model.name_or_path={world}/base"
    return [f"{ROOT}/jobs/{command}.py", base, *data, f"home={world}/home", *RUN, *more]


def environment():
    return {"PYTHONPATH": str(ROOT)}


def test_a_sweep(world):
    steps = ("sweep.space.tuning.steps=[8]", "tuning.eval_every=2")
    console = Terminal(arguments(world, "sweep", *SWEEP, *steps), 100, 40, **environment())
    text = console.read_until(r"★best|★ best", SECONDS)
    assert "live/r1 sweep" in text and f"run=live/r1 home={world}/home action=…" in " ".join(text.split())
    assert console.wait(SECONDS) == 0
    text = console.all_text()
    assert "pid=" not in text and "100 % · 2 of 2 trials ended" in text
    assert text.count("live/r1 sweep") == 1, "the last state is left, and no other"
    assert not console.screen.cursor.hidden


@pytest.mark.parametrize(
    ("command", "more", "sign"),
    [
        ("sweep", (*SWEEP, "sweep.space.tuning.steps=[100000]", "tuning.eval_every=2"), "★ best"),
        ("train", ("tuning.steps=100000", "tuning.eval_every=50"), r"best [\d.]+ at step"),
    ],
)
def test_ctrl_c(world, command, more, sign):
    console = Terminal(arguments(world, command, *more), 100, 40, **environment())
    console.read_until(sign, SECONDS)
    console.type(b"\x03")
    assert console.wait(SECONDS) == 130
    assert "interrupted; the same command with run=r1 resumes it" in console.text()
    assert "Tuner.restore" not in console.all_text() and not console.screen.cursor.hidden
    assert f"live/r1 {command}" in console.text()


def test_a_log_has_no_colours(world):
    steps = ("sweep.space.tuning.steps=[8]", "tuning.eval_every=2")
    done = subprocess.run(
        [sys.executable, *arguments(world, "sweep", *SWEEP, *steps)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr and "pid=" not in done.stdout + done.stderr
