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


@contextmanager
def input_errors_of_workers() -> Iterator[None]:
    """An error inside that a worker's InputError led to leaves as that one; all others as they are."""
    try:
        yield
    except Exception as error:
        found = first_input_error(error)
        if found is None or found is error:
            raise
        raise InputError(str(found)) from error


def first_input_error(error: BaseException | None) -> InputError | None:
    """The InputError among an error, what it came of, and what Ray Train's workers failed with."""
    if error is None or isinstance(error, InputError):
        return error
    failures = getattr(error, "worker_failures", None) or {}
    causes = (error.__cause__, getattr(error, "cause", None), *failures.values())
    return next((found for cause in causes if (found := first_input_error(cause)) is not None), None)
