"""What every step of a GPU session is given, and where its figures go: JSON lines, each on the disk at once."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def append(results: Path, line: dict[str, Any]) -> None:
    """Add a line that stays whatever happens next."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(results: Path) -> list[dict[str, Any]]:
    """All whole lines; none when there is no file."""
    text = results.read_text() if results.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@dataclass(frozen=True)
class Step:
    """A running step."""

    name: str
    results: Path
    """The session's lines."""
    scratch: Path
    """A folder that the steps of a session share."""
    smoke: bool
    """Tiny shapes: shows only that the code runs."""
    argument: str = ""
    """What distinguishes steps of one file, e.g. the shape."""

    @property
    def device(self) -> torch.device:
        """The GPU, else the CPU."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def add(self, **figures: Any) -> None:
        """Write one line of figures."""
        append(self.results, {"step": self.name, **figures})

    def seen(self, step: str) -> dict[str, Any]:
        """All figures of an earlier step so far, later lines over earlier ones."""
        found: dict[str, Any] = {}
        for line in read(self.results):
            found |= line if line["step"] == step else {}
        return found


def main(run: Callable[[Step], None]) -> None:
    """Run a step as gpu_session.py calls it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--argument", default="")
    run(Step(**vars(parser.parse_args())))
