"""A region at the end of the terminal that is redrawn in place, with everything that is printed meanwhile above it.

While it is open, what this process writes to stdout and stderr goes through it, whole lines at a time: prints, logs,
and what Ray forwards of its workers. What is written to the file descriptors themselves is not caught. Drawn with rich,
which is imported when a region is opened.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from raytune_llm.training.screen import Line

PERIOD_SECONDS = 0.5
KEPT_LINES = 200
"""Of what was printed above, for when the terminal becomes smaller."""
UNABLE = ("", "dumb", "unknown")
"""Terminals, by $TERM, that can't move their cursor."""

Draw = Callable[[int, int], Sequence[Line]]
"""Takes the columns and lines that there are."""


def is_live() -> bool:
    """Whether stdout is a terminal that a region can be drawn on."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "") not in UNABLE


class LiveRegion:
    """Shows what `draw` returns until it is closed, and then leaves it there."""

    def __init__(self, draw: Draw, takes: Callable[[str], bool] = lambda line: False) -> None:
        """`takes`: whether a line that is printed is for it, and not to be shown."""
        self._draw, self._takes = draw, takes
        self._lock = threading.RLock()
        self._printed: deque[Any] = deque(maxlen=KEPT_LINES)
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        from rich.console import Console

        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._size, self._height = self._console.size, 0
        self._streams = sys.stdout, sys.stderr
        self._above = [Above(self, stream) for stream in self._streams if stream.isatty()]
        self._redirect({above.stream: above for above in self._above})
        self._live = self._new_live()
        self._refresh()
        self._thread = threading.Thread(target=self._keep, name="live", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing.set()
        try:
            self._thread.join()
            for above in self._above:
                above.close_line()
            self._refresh()
        finally:
            with self._lock:
                self._live.stop()
                for above in self._above:
                    above.is_open = False
                self._redirect({above: above.stream for above in self._above})

    def show(self, line: str) -> None:
        """Print a line above the region, with its own colours."""
        if self._takes(line):
            return
        from rich.text import Text

        with self._lock:
            text = Text.from_ansi(line)
            self._printed.append(text)
            self._console.print(text, soft_wrap=True)

    def _new_live(self) -> Any:
        from rich.live import Live

        live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live

    def _keep(self) -> None:
        while not self._closing.wait(PERIOD_SECONDS):
            self._refresh()

    def _refresh(self) -> None:
        from rich.text import Text

        with self._lock:
            size = self._console.size
            if size.width < self._size.width or self._height > size.height:
                self._start_anew(size.height)
            self._size = size
            lines = self._draw(size.width - 1, size.height - 1)
            self._height = len(lines)
            text = Text("\n", no_wrap=True, overflow="crop").join(
                Text.assemble(*((piece.text, piece.style) for piece in line)) for line in lines
            )
            self._live.update(text, refresh=True)

    def _start_anew(self, height: int) -> None:
        """On an empty screen: what was drawn has been folded by a terminal that became narrower, so that nothing knows
        how many lines it takes. What stood there is scrolled away, and the last of it printed again."""
        self._live.update("")
        self._live.stop()
        self._console.print("\n" * height)
        self._console.clear()
        for text in list(self._printed)[-height:]:
            self._console.print(text, soft_wrap=True)
        self._live = self._new_live()

    def _redirect(self, streams: dict[Any, Any]) -> None:
        """Have sys and all handlers of logging write to other streams than these."""
        sys.stdout, sys.stderr = (streams.get(stream, stream) for stream in (sys.stdout, sys.stderr))
        for logger in (logging.getLogger(), *list(logging.root.manager.loggerDict.values())):
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                    handler.setStream(streams[handler.stream])


class Above:
    """A stream whose lines are printed above a region while that is open, and pass to `stream` afterwards. Each thread
    has a line of its own."""

    def __init__(self, region: LiveRegion, stream: Any) -> None:
        self.region, self.stream = region, stream
        self.is_open = True
        self._line = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        """No: bars that overwrite themselves would draw over the region."""
        return False if self.is_open else bool(self.stream.isatty())

    def write(self, text: str) -> int:
        if not self.is_open:
            return int(self.stream.write(text))
        *lines, rest = (getattr(self._line, "text", "") + text).split("\n")
        self._line.text = rest
        for line in lines:
            self.region.show(line.rstrip("\r").rpartition("\r")[2])
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self.is_open:
            self.stream.flush()

    def close_line(self) -> None:
        """Print what this thread has of a line."""
        if getattr(self._line, "text", ""):
            self.write("\n")
