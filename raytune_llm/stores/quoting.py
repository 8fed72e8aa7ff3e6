"""Values as the command line takes them: `key=value`, the value as Hydra's grammar reads it back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raytune_llm.errors import InputError

PLAIN = re.compile(r"[A-Za-z/][\w/.@-]*", re.ASCII)
"""Texts that need no quotes, but for the words below."""
WORDS = frozenset(("null", "none", "true", "false", "yes", "no", "on", "off", "inf", "nan"))
"""What is no text without quotes."""
KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
"""Names of a mapping's keys, which take no quotes."""


def quote(value: str) -> str:
    """The value in single quotes, as Hydra reads them: backslashes count only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def literal(value: Any) -> str:
    """A text, number, bool, None, list or mapping as a value that is read back as it is. Raises InputError for what
    can't be: a text with ${, which would refer to another key, and other types."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if "${" in value:
            raise InputError(f"{value}: ${{ begins a reference to another key; no value may have it")
        return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else quote(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, Mapping) and all(isinstance(key, str) and KEY.fullmatch(key) for key in value):
        return f"{{{','.join(f'{key}: {literal(item)}' for key, item in value.items())}}}"
    raise InputError(f"{value!r} is no value of a command line: expected texts, numbers, lists or mappings of them")


def override(key: str, value: Any) -> str:
    """key=value."""
    return f"{key}={literal(value)}"
