"""One archive of the wheels, in parts of a bounded size, with their checksums."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
from pathlib import Path
from typing import Any

ARCHIVE = "raytune_llm.tar.xz"
PRESET = 6


class Parts:
    """A file to write to, which is cut into ARCHIVE.000, ARCHIVE.001, …"""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes, self._left = folder, part_bytes, 0
        self._file: Any = None
        self.paths: list[Path] = []

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self._left:
                self._next()
            written = view[: self._left]
            self._file.write(written)
            self._left -= len(written)
            view = view[len(written) :]
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _next(self) -> None:
        self.close()
        self.paths.append(self._folder / f"{ARCHIVE}.{len(self.paths):03d}")
        self._file, self._left = self.paths[-1].open("wb"), self._part_bytes


def write_parts(files: list[Path], folder: Path, part_bytes: int) -> list[Path]:
    """Archive these files, flat, and write SHA256SUMS; returns the parts."""
    parts = Parts(folder, part_bytes)
    with lzma.LZMAFile(parts, "w", preset=PRESET) as compressed, tarfile.open(fileobj=compressed, mode="w|") as archive:
        for file in files:
            archive.add(file, file.name)
    parts.close()
    sums = [f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts.paths]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return parts.paths
