"""Relative local paths in a config, made absolute on the driver before they cross to workers in another folder.

A dataclass says so of a field: `train: str | None = field(metadata=LOCATION)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any


def absolute(path: str) -> str:
    """A local path made absolute; URIs as they are."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def absolute_if_local(value: str) -> str:
    """An existing local file or folder made absolute, or what looks like a relative path; ids and templates as they
    are."""
    path = Path(value).expanduser()
    looks_local = value.startswith((".", "~")) or (path.suffix in {".jsonl", ".json", ".gz"} and ":" not in value)
    return str(path.resolve()) if looks_local or (len(value) < 1024 and path.exists()) else value


FOLDER = {"absolute": absolute}
"""Metadata of a field that always is a path or URI, whether it exists or not."""
LOCATION = {"absolute": absolute_if_local}
"""Metadata of a field that may be a path."""


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
        found = convert(given) if convert is not None and isinstance(given, str) else with_absolute_paths(given)
        if found != given:
            changed[field.name] = found
    return replace(value, **changed) if changed else value
