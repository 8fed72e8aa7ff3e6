"""Configs, cards and metrics as valid JSON text, whatever numbers and enums they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import pydantic_core


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of configs and metrics: NaN and ±Inf, which JSON has no numbers for, are the strings 'NaN',
    'Infinity' and '-Infinity' (float() reads them); an Enum is its value, a path its text, a dataclass a mapping of its
    fields. Raises TypeError for what isn't data."""
    try:
        return pydantic_core.to_json(value, indent=indent, inf_nan_mode="strings", fallback=_as_data).decode()
    except pydantic_core.PydanticSerializationError as error:
        raise TypeError(str(error)) from error


def _as_data(value: Any) -> Any:
    """What pydantic has no rule for: mappings other than dicts, paths of another system."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not JSON serializable")
