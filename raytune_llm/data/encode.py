"""The records of a job as its method encodes them: each once, kept with its record.

Training takes the examples, the doctor examines them, and the comparison after training pairs them with their records.
Leaves out what frozen models add to examples before training (jobs/precompute.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from raytune_llm.data.examples import Example
from raytune_llm.data.files import Splits
from raytune_llm.data.records import Record
from raytune_llm.data.tokens import Tokens, Truncation
from raytune_llm.errors import InputError

Encode = Callable[[Record, Tokens], Example | None]
"""A method's encoding of one record; None where truncation leaves nothing to learn from."""


@dataclass(frozen=True)
class EncodedSplit:
    """Records of a split with their token sequences."""

    records: list[Record]
    encoded: list[Example | None]
    """One for each record; None where truncation left nothing to learn from."""
    truncation: Truncation
    """Counted while these records were encoded."""

    @property
    def examples(self) -> list[Example]:
        """Those of which something is left, in the records' order."""
        return [example for example in self.encoded if example is not None]

    def pairs(self) -> list[tuple[Record, Example]]:
        """The records with an example, and that example."""
        both = zip(self.records, self.encoded, strict=True)
        return [(record, example) for record, example in both if example is not None]

    def with_examples(self, examples: Sequence[Example]) -> EncodedSplit:
        """The same records with other examples in the places of `examples`, in their order."""
        if len(examples) != len(self.examples):
            raise ValueError(f"{len(examples)} examples given for the {len(self.examples)} of the split")
        new = iter(examples)
        return replace(self, encoded=[None if example is None else next(new) for example in self.encoded])

    def drawn(self, count: int | None, seed: int) -> EncodedSplit:
        """At most `count` of the records, as `draw_indices` draws them."""
        chosen = draw_indices(len(self.records), count, seed)
        return replace(self, records=[self.records[i] for i in chosen], encoded=[self.encoded[i] for i in chosen])


@dataclass(frozen=True)
class EncodedSplits:
    """The encoded records of a job; splits without records are empty."""

    train: EncodedSplit
    eval: EncodedSplit
    test: EncodedSplit
    max_tokens: int
    """Longest sequence; for encoder-decoder bases, of either side."""
    is_encoder_decoder: bool

    def items(self) -> Iterator[tuple[str, EncodedSplit]]:
        """The splits that have records, by name."""
        yield from ((name, split) for name in ("train", "eval", "test") if (split := getattr(self, name)).records)


def encode_splits(splits: Splits, tokens: Tokens, encode: Encode) -> EncodedSplits:
    """All records of a job, each encoded once. Raises InputError as `encode_split` does."""
    train, evaluation, test = (
        encode_split(name, getattr(splits, name), tokens, encode) for name in ("train", "eval", "test")
    )
    return EncodedSplits(train, evaluation, test, tokens.max_tokens, tokens.is_encoder_decoder)


def encode_split(
    name: str, records: Sequence[Record], tokens: Tokens, encode: Encode, indices: Sequence[int] | None = None
) -> EncodedSplit:
    """The records of one split, those of `indices` only where they are given; `tokens` keeps its own counts.

    Raises:
        InputError: a record can't be encoded, naming split and number.
    """
    chosen = range(len(records)) if indices is None else indices
    encoded: list[Example | None] = []
    with tokens.counting() as truncation:
        for index in chosen:
            try:
                encoded.append(encode(records[index], tokens))
            except InputError as error:
                raise InputError(f"data.{name}, record {index + 1}: {error}") from error
    return EncodedSplit([records[index] for index in chosen], encoded, truncation)


def draw_indices(num_records: int, count: int | None, seed: int) -> Sequence[int]:
    """Indices of at most `count` records, the same ones for the same seed; all of them, in order, where `count` is None
    or not less."""
    if count is None or count >= num_records:
        return range(num_records)
    return random.Random(seed).sample(range(num_records), count)
