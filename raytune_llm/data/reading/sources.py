"""Locations as a config gives them, and the files that they name.

A location is one of
    /path, ~/path or ./path     a local file: JSON lines, a JSON array, CSV, TSV, Parquet or Arrow, also compressed
    folder/, data/*.jsonl       all such files in a folder, or that match, in the order of their names; a folder of
                                datasets' save_to_disk in its own order
    s3://…, gs://…, https://…   a remote file: pyarrow's file systems for s3 and gs, fsspec for the rest
    hf:org/name                 a data set of the Hugging Face hub (or a local folder of one), its split `train`
    hf:org/name:split           another split, slices too: hf:org/name:train[:1000]
    hf:org/name:config:split    of one configuration
or a list of those, each of which may have a weight: [{path: a.jsonl, weight: 2}, b.jsonl].
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytune_llm.data.reading.saved import files_of, is_saved
from raytune_llm.errors import InputError, require

Locations = str | list[str | dict[str, Any]]
"""What a config may hold: one location, or several, with weights or without."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
SHOWN_NAMES = 8
MOST_PASSES = 1000
PLAIN = re.compile(r"[A-Za-z_][\w-]*")
"""A name that a dotted key can have."""
LONGEST_PATH = 1024
DENIED = "permission denied; make it readable for the user of this job"


@dataclass(frozen=True)
class Source:
    """One location, and how often an epoch sees its records."""

    path: str
    weight: float = 1.0
    """Passes over its records in one epoch: 2 = each twice, 0.5 = half of them."""
    place: int = 0
    """Among the locations of its split."""

    @property
    def shown(self) -> str:
        """The end of the location, enough to recognise it."""
        return self.path if is_hub(self.path) else "/".join(self.path.rstrip("/").split("/")[-2:])


@dataclass(frozen=True)
class Unreadable:
    """A location that can't be read."""

    path: str
    reason: str


def is_hub(path: str) -> bool:
    """Whether a location names a data set of the hub."""
    return path.startswith("hf:") and not path.startswith("hf://")


def is_remote(path: str) -> bool:
    return "://" in path or is_hub(path)


def sources(locations: Locations | None, key: str) -> list[Source]:
    """The locations of a config's value. Raises InputError for a value of another form."""
    if locations is None:
        return []
    given = locations if isinstance(locations, list) else [locations]
    require(bool(given), key, "[]", "a location, a list of them, or null")
    return [
        _source(entry, f"{key}[{place}]" if isinstance(locations, list) else key, place)
        for place, entry in enumerate(given)
    ]


def source_names(given: Sequence[Source]) -> list[str]:
    """What weights call each location: its file's name without suffixes, or its place from 0 where that is no plain
    word or another's too."""
    stems = [_stem(source.path) for source in given]
    return [
        stem if PLAIN.fullmatch(stem) and stems.count(stem) == 1 else str(place) for place, stem in enumerate(stems)
    ]


def _stem(path: str) -> str:
    """The last part of a location, without suffixes, or the split of a data set."""
    whole = path.removeprefix("hf:").partition(":")[0] if is_hub(path) else path.partition("?")[0]
    name = (whole if is_remote(path) else os.path.abspath(os.path.expanduser(whole))).rstrip("/").rpartition("/")[2]
    for suffixes in (COMPRESSED, SUFFIXES):
        name = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
    return name


def _source(entry: Any, key: str, place: int) -> Source:
    allowed = "a location, or {path: a location, weight: a number above 0}"
    if isinstance(entry, str):
        require(bool(entry.strip()), key, repr(entry), "a location or null")
        return Source(entry, place=place)
    require(isinstance(entry, dict) and set(entry) <= {"path", "weight"} and "path" in entry, key, entry, allowed)
    path, weight = entry["path"], entry.get("weight", 1.0)
    require(isinstance(path, str) and bool(path.strip()), f"{key}.path", path, "a location")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    allowed = f"a number above 0 and at most {MOST_PASSES}"
    require(is_number and 0 < weight <= MOST_PASSES, f"{key}.weight", weight, allowed)
    return Source(path, float(weight), place)


def expand(source: Source) -> list[Source | Unreadable]:
    """The files that a location names: itself, or those in a local folder or of a local pattern."""
    path = os.path.expanduser(source.path)
    if is_remote(path):
        return [source]
    if len(path) > LONGEST_PATH:
        return [Unreadable(path, "is too long for a path; records go into a file, whose path is given here")]
    if os.path.isdir(path) and is_saved(Path(path)):
        try:
            return [replace(source, path=entry) for entry in files_of(Path(path))]
        except InputError as error:
            return [Unreadable(source.path, str(error))]
    if os.path.isdir(path):
        found = sorted(entry for entry in glob.glob(f"{glob.escape(path)}/*") if is_records(entry))
        reason = f"is a folder without files of records ({', '.join(SUFFIXES)}); it has {_names_in(Path(path))}"
    elif not os.path.exists(path) and glob.has_magic(path):
        found = sorted(entry for entry in glob.glob(path, recursive=True) if _is_file(entry))
        reason = "no file matches this pattern"
    else:
        return [source]
    return [replace(source, path=entry) for entry in found] or [Unreadable(source.path, reason)]


def is_records(path: str) -> bool:
    """Whether a file's name says that it holds records."""
    return format_of(path) in SUFFIXES and _is_file(path)


def _is_file(path: str) -> bool:
    """Whether it is one, or is a link to what doesn't exist, which is not passed over."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def format_of(path: str) -> str:
    """The suffix that tells a file's format, that of its compression left out."""
    name = Path(path.partition("?")[0])
    return Path(name.stem).suffix.lower() if name.suffix.lower() in COMPRESSED else name.suffix.lower()


def why_missing(path: str) -> str | None:
    """Why a local path can't be opened, with similar names near it; None where it can be tried."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return _missing(Path(path))
    except PermissionError:
        return DENIED
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except ValueError:  # NUL, or half of a character pair
        return "is no path: it has a character that no name can have"
    if stat.S_ISDIR(kind):
        return f"is a folder; it has {_names_in(Path(path))}"
    if not stat.S_ISREG(kind):
        return (
            "is no file but a pipe or device, which could be read only once, and not by a resumed run; "
            "write its records to a file first"
        )
    return None


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {names([os.readlink(path)])}, which doesn't exist; make the link anew, or name the file"
    if not path.parent.is_dir():
        nearest = next(parent for parent in path.parents if parent.is_dir())
        return f"no such file; its folder is missing too, the nearest that exists is {nearest}"
    entries = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, entries, n=3, cutoff=0.5)
    return f"no such file; did you mean {names(close)}?" if close else f"no such file; its folder has {names(entries)}"


def _names_in(folder: Path) -> str:
    try:
        return names(sorted(entry.name for entry in folder.iterdir()))
    except OSError as error:
        return f"entries that can't be listed ({error.strerror})"


def names(entries: Sequence[str]) -> str:
    """The first few of them, printable."""
    entries = [repr(entry)[1:-1] for entry in entries]
    more = " …" if len(entries) > SHOWN_NAMES else ""
    return (", ".join(entries[:SHOWN_NAMES]) or "nothing in it") + more


def check_hub_name(path: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of hf:org/name:config:split. Raises InputError for another form, and for a local
    folder that is no data set."""
    name, *rest = re.split(r":(?![^\[]*\])", path.removeprefix("hf:"))
    if not name or len(rest) > 2 or not all(rest):
        raise InputError("expected hf:org/name, hf:org/name:split or hf:org/name:config:split")
    folder = Path(os.path.expanduser(name))
    looks_local = name.startswith((".", "~", "/"))
    if looks_local and Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(
            f"{name} is this folder or one above it, all of which would be searched; name a data set in it"
        )
    if looks_local and is_saved(folder):
        raise InputError(f"{name} is a folder of save_to_disk; it is read without hf: {folder}")
    if looks_local and not (folder.is_dir() and _is_data_set(folder)):
        raise InputError(f"{name} is no folder of a data set: it has no files of records and no README.md")
    config = rest[0] if len(rest) == 2 else None
    return str(folder) if looks_local else name, config, rest[-1] if rest else "train"


def _is_data_set(folder: Path) -> bool:
    """Whether a folder looks like one: others would be searched through, which may take hours."""
    known = ("README.md", "dataset_infos.json")
    inner = folder / "data"
    entries = [*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ())]
    return any((folder / name).exists() for name in known) or any(is_records(str(entry)) for entry in entries)
