"""A program on a terminal of a given size, and what its user sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

import pyte


class Terminal:
    """Runs a program on a pseudo-terminal and emulates the terminal."""

    def __init__(self, arguments: Sequence[str], columns: int, lines: int, **environment: str) -> None:
        self.bytes = b""
        self.screen = pyte.HistoryScreen(columns, lines, history=5000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self._fd, side = pty.openpty()
        self.resize(columns, lines)
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**kept, "TERM": "xterm-256color", **environment},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(side)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """What the user types, \\x03 for Ctrl-C."""
        os.write(self._fd, keys)

    def read_until(self, pattern: str, seconds: float) -> str:
        """The screen, once it shows this; fails when it doesn't in time, or the program ends before."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, text := self.text()):
            assert time.monotonic() < deadline and self._read(), f"no {pattern} on the screen:\n{text}"
        return text

    def wait(self, seconds: float) -> int:
        """The program's exit status, when it has ended."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, f"still running:\n{self.text()}"
        os.close(self._fd)
        return self.process.wait(seconds)

    def _read(self) -> bool:
        """Take what it writes within a moment; whether it can still write."""
        if not select.select([self._fd], [], [], 0.1)[0]:
            return True
        try:
            found = os.read(self._fd, 65536)
        except OSError:  # how Linux says that nobody has the other side any more
            return False
        self.bytes += found
        self._stream.feed(found)
        return bool(found)

    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def all_text(self) -> str:
        """That, below what has left it at the top."""
        above = (
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        )
        return "\n".join([*(line.rstrip() for line in above), self.text()])
