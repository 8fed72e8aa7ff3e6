"""Values of hyperparameters in requests, of both APIs: "auto" or a number in its range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from raytune_llm.service.records import AUTO

Value = int | float | str


def _checked(is_right: Callable[[Any], bool], words: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        is_number = is_number and not isinstance(value, bool)
        if value is None or value == AUTO or (is_number and is_right(value)):
            return int(value) if isinstance(value, float) and value.is_integer() and "whole" in words else value
        raise ValueError(f'must be "{AUTO}" or {words}')

    return BeforeValidator(check)


def _whole(low: int, high: int, meaning: str) -> Any:
    words = f"a whole number from {low} to {high}"
    number = {"type": "integer", "minimum": low, "maximum": high}
    return Annotated[
        int | str | None,
        _checked(lambda value: value == int(value) and low <= value <= high, words),
        WithJsonSchema({"anyOf": [{"const": AUTO}, number, {"type": "null"}], "description": meaning}),
    ]


def _positive(high: float, meaning: str) -> Any:
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": high}
    return Annotated[
        float | str | None,
        _checked(lambda value: 0 < value <= high, f"a number above 0, at most {high:g}"),
        WithJsonSchema({"anyOf": [{"const": AUTO}, number, {"type": "null"}], "description": meaning}),
    ]


Epochs = _whole(1, 50, "Passes over the training file.")
BatchSize = _whole(1, 256, "Examples in each step.")
AdapterSize = _whole(1, 256, "The adapter's rank.")
RateMultiplier = _positive(100, "Times the learning rate that is recommended for the model.")
Beta = _positive(2, "How strongly the model is held near what it was.")
