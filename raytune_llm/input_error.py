"""What the user gave and can't be used: how it is said, and how it is told from a fault of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave can't be used. Jobs print it without a traceback and exit with status 2."""


@contextmanager
def input_errors() -> Iterator[None]:
    """What is found wrong in here was given by the user: say so without a traceback."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise ValueError naming the config key, what was found and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{key}={found} is not allowed; allowed: {allowed}")


def check_name(key: str, name: str) -> None:
    """Refuse a name that could not safely become a folder."""
    legal = (
        bool(name)
        and len(name) <= 128
        and name[0].isalnum()
        and all((c.isalnum() and c.isascii()) or c in "._-" for c in name)
    )
    require(legal, key, repr(name), "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128")
