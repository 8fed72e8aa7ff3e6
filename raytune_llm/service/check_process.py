"""The data check as a process of its own, which can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MOST_OUTPUT_BYTES = 1 << 20
"""Of its end, that are kept."""


@dataclass(frozen=True)
class Finished:
    """How a check ended."""

    exit_status: int
    """Negative: the signal that ended it."""
    output: str
    """What it printed."""


class Check(Protocol):
    """A check on its way."""

    def poll(self) -> Finished | None:
        """How it ended; None before."""
        ...

    def kill(self) -> None:
        """End it, and all that it started, and remove what it wrote; also after its end."""
        ...


class CheckProcess:
    """`raytune-llm check …` on this machine's CPUs."""

    def __init__(self, command: Sequence[str], *, hidden: Collection[str] = ()) -> None:
        """command: ("raytune-llm", "check", …); hidden: environment variables that it doesn't get."""
        self._folder = tempfile.TemporaryDirectory(prefix="raytune-llm-check-")
        self._output = Path(self._folder.name, "output")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raytune_llm.cli", *command[1:]],
                cwd=self._folder.name,
                env={name: value for name, value in os.environ.items() if name not in hidden},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> Finished | None:
        status = self._process.poll()
        if status is None:
            return None
        with self._output.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - MOST_OUTPUT_BYTES))
            return Finished(status, output.read().decode(errors="replace"))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()
