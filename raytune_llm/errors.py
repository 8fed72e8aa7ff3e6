"""Errors caused by user input, and how they are kept apart from faults of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """The user's input can't be used. Jobs print the message without a traceback and exit with status 2."""


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise InputError naming the config key, its value and the allowed values, unless the condition holds."""
    if not condition:
        raise InputError(f"{key}={found} is not allowed; allowed: {allowed}")


def check_name(key: str, name: str) -> None:
    """Raise InputError for a name that could not safely become a folder."""
    legal = (
        bool(name)
        and len(name) <= 128
        and name[0].isalnum()
        and all((c.isalnum() and c.isascii()) or c in "._-" for c in name)
    )
    require(legal, key, repr(name), "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, to be quoted in ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def worker_input_errors() -> Iterator[None]:
    """Raise a worker's InputError in place of the error that it caused here; other errors pass unchanged."""
    try:
        yield
    except Exception as error:
        found = first_input_error(error)
        if found is None or found is error:
            raise
        raise InputError(str(found)) from error


def first_input_error(error: BaseException | None) -> InputError | None:
    """The first InputError among an error and its causes."""
    return next((cause for cause in causes(error) if isinstance(cause, InputError)), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then what caused it, depth first, each once: Python's causes, Ray's, and the failures of Ray Train's
    workers and controller."""
    seen: set[int] = set()
    waiting = [] if error is None else [error]
    while waiting:
        cause = waiting.pop()
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += reversed(_inner(cause))


def roots(error: BaseException) -> list[BaseException]:
    """Those of its causes that have none themselves."""
    return [cause for cause in causes(error) if not _inner(cause)]


def _inner(error: BaseException) -> list[BaseException]:
    """What caused an error at once."""
    names = ("__cause__", "cause", "controller_failure", "health_check_failure")
    found = [*(getattr(error, name, None) for name in names), *(getattr(error, "worker_failures", None) or {}).values()]
    return [cause for cause in found if cause is not None and cause is not error]
