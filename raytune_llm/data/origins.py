"""Where records were read: file and line of each, in twelve bytes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.reading.sources import Source, is_remote


class Origins:
    """The origins of a split's records, in their order."""

    def __init__(self) -> None:
        self.files: list[Source] = []
        self._file, self._line = array("l"), array("q")

    def __len__(self) -> int:
        return len(self._line)

    def begin(self, file: Source) -> None:
        """What is added from now on comes from this file."""
        self.files.append(file)

    def add(self, line: int) -> None:
        self._file.append(len(self.files) - 1)
        self._line.append(line)

    def where(self, index: int) -> str:
        """File and line, the file by its name where it is local and has a name of its own."""
        path = self.source(index)
        name = Path(path).name
        is_whole = is_remote(path) or any(Path(file.path).name == name != path != file.path for file in self.files)
        return f"{path if is_whole else name}:{self._line[index]}"

    def line(self, index: int) -> int:
        return self._line[index]

    def source(self, index: int) -> str:
        """The file's path, as `counts` names it."""
        return self.files[self._file[index]].path

    def weight(self, index: int) -> float:
        """Passes over this record in an epoch."""
        return self.files[self._file[index]].weight

    def places(self) -> NDArray[np.int64]:
        """Which location of the split each record is of, (n,)."""
        of_file = np.array([file.place for file in self.files], dtype=np.int64)
        return of_file[np.array(self._file, dtype=np.int64)]

    def counts(self) -> dict[str, int]:
        """Records of each file that gave any, by its path."""
        found: dict[str, int] = {}
        for file in self._file:
            found[self.files[file].path] = found.get(self.files[file].path, 0) + 1
        return found

    def select(self, indices: Sequence[int]) -> Origins:
        """Those of some records."""
        selected = Origins()
        selected.files = self.files
        selected._file = array("l", (self._file[i] for i in indices))
        selected._line = array("q", (self._line[i] for i in indices))
        return selected
