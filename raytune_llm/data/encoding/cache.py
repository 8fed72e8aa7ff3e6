"""Encoded records of earlier jobs, found again by what they were made from.

An entry is a folder below $XDG_CACHE_HOME/raytune_llm/encoded (or ~/.cache/…), named by the sha256 over everything that
encoding depends on: the records themselves, the tokenizer, the longest sequence, the method with all its settings, and
the source code of this package. So an entry is never out of date; what is unused longest is deleted first.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import raytune_llm
from raytune_llm.data.encoding.block import Encode
from raytune_llm.data.records import Record
from raytune_llm.data.tables.array_files import META, Corrupt, GrowingArrays, read_arrays
from raytune_llm.data.tables.record_table import digest_of
from raytune_llm.data.tokenizing.tokens import Tokens

MOST_BYTES = 20 << 30
ABANDONED_SECONDS = 24 * 3600.0
"""An unfinished folder that is older belongs to a job that was killed."""
UNFINISHED = "unfinished-"

Found = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays, and what was written about them."""


def cache_folder() -> Path:
    """Where the entries are. Raises RuntimeError for a user without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "raytune_llm" / "encoded"


def cache_key(records: Sequence[Record], tokens: Tokens, encode: Encode) -> str | None:
    """The name of the entry; None where `encode` or the tokenizer can't be identified by content: `encode` must be a
    method of a dataclass that is imported from a file."""
    method, backend = getattr(encode, "__self__", None), getattr(tokens.tokenizer, "backend_tokenizer", None)
    source = getattr(sys.modules.get(type(method).__module__), "__file__", None)
    own = {name: value for name, value in vars(tokens).items() if name not in ("tokenizer", "truncation")}
    settings = repr((method, own))
    if not is_dataclass(method) or backend is None or source is None or " at 0x" in settings:
        return None
    parts = (
        _code(source),
        f"{type(method).__module__}.{getattr(encode, '__qualname__', '')}",
        settings,
        type(tokens.tokenizer).__name__,
        backend.to_str(),
        repr((tokens.tokenizer.chat_template, tokens.tokenizer.special_tokens_map)),
        digest_of(records),
    )
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


@cache
def _code(source: str) -> str:
    """What encodes: the method's source file, this package, and the versions of what it calls."""
    digest = hashlib.sha256()
    for name in ("transformers", "tokenizers", "jinja2"):
        digest.update(f"{name} {importlib.metadata.version(name)};".encode())
    for file in (Path(source), *package_files()):
        digest.update(f"{file.name}:".encode() + file.read_bytes())
    return digest.hexdigest()


def package_files() -> list[Path]:
    """The files of this package whose code makes records and encodes them."""
    package = Path(raytune_llm.__file__).parent
    return [file for room in ("data", "methods") for file in sorted((package / room).rglob("*.py"))]


def find(key: str) -> Found | None:
    """An entry, marked as used now; None where there is none. A damaged one is deleted."""
    try:
        folder = cache_folder() / key
        if not (folder / META).is_file():
            return None
        found = read_arrays(folder)
        os.utime(folder)
        return found
    except (Corrupt, FileNotFoundError):
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, RuntimeError):
        pass
    return None


@contextlib.contextmanager
def new_entry(key: str | None) -> Iterator[GrowingArrays]:
    """Arrays that become the entry once they are finished, unless another process was faster; in memory only where
    `key` is None. A disk that is full or read-only is named in one line."""
    folder = None
    if key is not None:
        try:
            root = cache_folder()
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=root))
        except (OSError, RuntimeError) as error:
            _explain(error)
    arrays = GrowingArrays(folder)
    try:
        yield arrays
        if arrays.failure is not None:
            _explain(arrays.failure)
        elif folder is not None and (folder / META).is_file():
            with contextlib.suppress(OSError):
                folder.rename(folder.parent / str(key))
                make_room(folder.parent, keep=str(key))
    finally:
        if folder is not None:  # what is mapped of it stays readable
            shutil.rmtree(folder, ignore_errors=True)


def make_room(root: Path, keep: str, most_bytes: int = MOST_BYTES) -> None:
    """Delete unfinished folders of killed jobs, and the entries unused longest until at most so many bytes are left;
    never `keep`."""
    entries = []
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            used = folder.stat().st_mtime
            if folder.name.startswith(UNFINISHED):
                if time.time() - used > ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                entries.append((folder.name != keep, used, folder, sum(f.stat().st_size for f in folder.iterdir())))
    total = sum(size for *_, size in entries)
    for others, _, folder, size in sorted(entries):
        if total > most_bytes and others:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _explain(error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    print(f"! encoded records aren't kept for the next job: {reason} (below $XDG_CACHE_HOME or ~/.cache)", flush=True)
