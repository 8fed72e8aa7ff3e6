"""Relative local paths in a config, made absolute on the driver before they cross to workers in another folder.

A dataclass says so of a field: `train: str | None = field(metadata=LOCATION)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any


def absolute(path: str) -> str:
    """A local path made absolute; URIs as they are."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def absolute_if_local(value: str) -> str:
    """An existing local file or folder made absolute, or what looks like a relative path; ids and templates as they
    are. Links stay: /dev/stdin is a name, what it points to isn't."""
    path = Path(value).expanduser()
    looks_local = value.startswith((".", "~")) or (path.suffix in LOCAL_SUFFIXES and ":" not in value)
    return os.path.abspath(path) if looks_local or (len(value) < 1024 and path.exists()) else value


def absolute_locations(value: Any) -> Any:
    """The same for one location or a list of them, with weights or without; of another form as they are."""
    if isinstance(value, list):
        return [absolute_locations(entry) for entry in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return value | {"path": absolute_if_local(value["path"])}
    return absolute_if_local(value) if isinstance(value, str) else value


LOCAL_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip"}
FOLDER = {"absolute": absolute}
"""Metadata of a field that always is a path or URI, whether it exists or not."""
LOCATION = {"absolute": absolute_if_local}
"""Metadata of a field that may be a path."""
LOCATIONS = {"absolute": absolute_locations}
"""Metadata of a field of one path or a list of them."""


def with_absolute_paths(value: Any) -> Any:
    """A config's dataclass with the paths in it, at any depth, made absolute."""
    if isinstance(value, Mapping):
        return {key: with_absolute_paths(item) for key, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in fields(value):
        given = getattr(value, field.name)
        convert = field.metadata.get("absolute")
        found = with_absolute_paths(given) if convert is None or given is None else convert(given)
        if found != given:
            changed[field.name] = found
    return replace(value, **changed) if changed else value
