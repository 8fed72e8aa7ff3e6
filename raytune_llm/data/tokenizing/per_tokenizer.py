"""What is computed once for each tokenizer, and kept no longer than the tokenizer is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

P = ParamSpec("P")
R = TypeVar("R")


def per_tokenizer(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A function of a tokenizer and perhaps more, given by position, that remembers its results. They must not refer to
    the tokenizer, which would keep it for ever; those of an exception aren't remembered."""
    results: WeakKeyDictionary[Any, dict[tuple[Any, ...], R]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(tokenizer: Any, *more: P.args, **none: P.kwargs) -> R:
        own = results.get(tokenizer)
        if own is None:
            own = results.setdefault(tokenizer, {})
        if more not in own:
            own[more] = function(tokenizer, *more, **none)
        return own[more]

    return cast(Callable[Concatenate[Any, P], R], remembered)
