"""What a worker found wrong with what the user gave, told on the driver without the traces of all that lay between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raytune_llm.input_error import InputError


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
