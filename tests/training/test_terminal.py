"""The region of the terminal that is redrawn in place."""

import subprocess
import sys
from pathlib import Path

import pytest
from terminals import Terminal

from raytune_llm.training import terminal

PROGRAM = """
import logging, sys, threading, time
from raytune_llm.training.screen import Piece
from raytune_llm.training.terminal import LiveRegion

log = logging.getLogger("someone")
log.addHandler(logging.StreamHandler())
frame = 0

def draw(width, height):
    global frame
    frame += 1
    first = Piece(f"frame {frame} of {width}x{height} ", "bold green")
    return [(first, Piece(f"row {row}", "red")) for row in range(3)]

def takes(line):
    return line.startswith(":mark:")

print("before", flush=True)
try:
    with LiveRegion(draw, takes):
        print("printed", flush=True)
        log.warning("logged")
        print("\\x1b[31mcoloured\\x1b[0m", file=sys.stderr)
        print(":mark:secret")
        print("bar 1\\rbar 2\\rbar 3")
        print("x" * 100)
        threads = [threading.Thread(target=print, args=(f"thread {n}", "of", "several")) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("left open", end="")
        for second in range(WAIT):
            time.sleep(1)
        print(" and closed")
        print("at the end", end="")
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
log.warning("after")
"""


def program(wait):
    return ["-c", PROGRAM.replace("WAIT", str(wait))]


def environment():
    return {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_what_is_printed_stands_above_and_the_last_frame_stays():
    console = Terminal(program(1), 80, 30, **environment())
    assert console.wait(30) == 0
    lines = console.text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("frame"))
    above, frame, below = lines[:place], lines[place : place + 3], lines[place + 3 :]
    assert above[:7] == ["before", "printed", "logged", "coloured", "bar 3", "x" * 80, "x" * 20]
    assert sorted(above[7:11]) == [f"thread {n} of several" for n in range(4)]
    assert above[11:] == ["left open and closed", "at the end"]
    assert [line.split(" of ")[1] for line in frame] == [f"79x29 row {row}" for row in range(3)]
    assert below[0] == "after" and not "".join(below[1:])
    assert not console.screen.cursor.hidden and b"secret" not in console.bytes


def test_ctrl_c_leaves_the_terminal_as_it_was():
    console = Terminal(program(60), 80, 30, **environment())
    console.read_until("frame 2 ", 30)
    assert console.screen.cursor.hidden
    console.type(b"\x03")
    assert console.wait(30) == 0
    lines = console.text().split()
    assert not console.screen.cursor.hidden and lines[-2:] == ["interrupted", "after"]


@pytest.mark.parametrize(("columns", "height"), [(40, 30), (120, 30), (80, 12)])
def test_a_terminal_may_be_resized(columns, height):
    console = Terminal(program(3), 80, 30, **environment())
    console.read_until("frame 2 ", 30)
    console.resize(columns, height)
    console.read_until(rf"of {columns - 1}x{height - 1}", 30)
    assert console.wait(30) == 0
    lines = console.text().splitlines()
    place = max(i for i, line in enumerate(lines) if line.startswith("frame"))
    assert [line.startswith("frame") for line in lines[max(0, place - 3) : place + 1]] == [False, True, True, True]
    assert "at the end" in lines[:place], "what was printed before is there again"


def test_no_colours_where_nobody_wants_them():
    console = Terminal(program(0), 80, 30, NO_COLOR="1", **environment())
    assert console.wait(30) == 0
    assert b"\x1b[31m" not in console.bytes and b"\x1b[1;32m" not in console.bytes


@pytest.mark.parametrize(("term", "is_live"), [("xterm", True), ("dumb", False), ("unknown", False), ("", False)])
def test_what_a_region_needs(term, is_live, monkeypatch):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal.is_live() is is_live
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not terminal.is_live()


def test_nothing_is_imported_before_a_region_is_opened():
    code = "import sys; from raytune_llm.jobs import commands, setup; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
