"""The hash that identifies a base in a local folder, remembered per user: weight files of many GB are read only once.

What is remembered is named by the paths, sizes, inodes and times of change of all files, so a changed file finds
nothing. Whatever is missing or unreadable there is computed anew, silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTLED_SECONDS = 2.0
"""Files that changed less than this long ago aren't remembered: another change might leave size and times as they
are, by the coarse clock of file systems."""


def folder_hash(folder: Path) -> str:
    """sha256 over the names, sizes and contents of config.json and *.safetensors, by name."""
    files = [file for file in sorted(folder.glob("*")) if file.name == "config.json" or file.suffix == ".safetensors"]
    before = _state(files)
    if (known := _remembered(before)) is not None:
        return known
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    if _state(files) == before:
        _remember(before, digest.hexdigest())
    return digest.hexdigest()


State = list[tuple[str, int, int, int, int]]
"""Path, size, inode and times of change (content, any), in ns, of each file."""


def _state(files: Sequence[Path]) -> State:
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return [(path, one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for path, one in stats]


def _place(state: State) -> Path:
    """The file that remembers the hash of files in this state: below $XDG_CACHE_HOME, or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "raytune_llm" / "base_hashes" / hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _remembered(state: State) -> str | None:
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):
        text = _place(state).read_text()
        return text if re.fullmatch("[0-9a-f]{64}", text) else None
    return None


def _remember(state: State, digest: str) -> None:
    """Keep a hash, replacing its file at once, so that other processes read all of it or nothing."""
    newest = max((time_ns for *_, content_ns, any_ns in state for time_ns in (content_ns, any_ns)), default=0)
    if time.time_ns() - newest < SETTLED_SECONDS * 1e9:
        return
    with contextlib.suppress(OSError, RuntimeError):
        place = _place(state)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as new:
            new.write(digest)
        os.replace(new.name, place)
