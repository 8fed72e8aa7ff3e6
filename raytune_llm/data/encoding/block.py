"""Some records, encoded: what one call of a worker process gives back, as arrays.

Leaves out how blocks are spread over processes (workers.py) and kept (cache.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.examples import Example
from raytune_llm.data.records import Record
from raytune_llm.data.tables.example_table import pack
from raytune_llm.data.tokenizing.tokens import Tokens, Truncation
from raytune_llm.errors import InputError

Encode = Callable[[Record, Tokens], Example | None]
"""A method's encoding of one record; None where truncation leaves nothing to learn from."""
Refused = list[tuple[int, str]]
"""Records that can't be encoded: the place of each, ascending, and why."""
PLACES = "places"
"""Array of a block: which of its records each example belongs to, ascending; int64."""


@dataclass(frozen=True)
class Block:
    """Records that were encoded one after another."""

    num_records: int
    arrays: dict[str, NDArray[Any]]
    """Of an ExampleTable, and PLACES."""
    truncation: Truncation
    refused: Refused


def encode_block(records: Sequence[Record], tokens: Tokens, encode: Encode) -> Block:
    """The records' examples; `tokens` keeps its own counts. Raises what `encode` raises, but for InputError."""
    examples: list[Example] = []
    places: list[int] = []
    refused: Refused = []
    with tokens.counting() as truncation:
        for place, record in enumerate(records):
            try:
                example = encode(record, tokens)
            except InputError as error:
                refused.append((place, str(error)))
                continue
            if example is not None:
                examples.append(example)
                places.append(place)
    small = len(tokens.tokenizer) <= np.iinfo(np.uint16).max + 1
    arrays = pack(examples, np.uint16 if small else np.int32) | {PLACES: np.array(places, dtype=np.int64)}
    return Block(len(records), arrays, truncation, refused)


def merged(counts: Truncation, more: Truncation) -> Truncation:
    """Both counts together: longest ones are compared, all others added up."""
    found = {}
    for field in dataclasses.fields(Truncation):
        one, other = getattr(counts, field.name), getattr(more, field.name)
        found[field.name] = max(one, other) if field.name.startswith("longest") else one + other
    return Truncation(**found)
