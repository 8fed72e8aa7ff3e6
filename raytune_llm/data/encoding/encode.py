"""The records of a job as its method encodes them: each once, kept with its record.

Training takes the examples, the doctor examines them, and the comparison after training pairs them with their records.
Many records are encoded by several processes, once for all jobs: a cache keeps them. Leaves out what frozen models add
to examples before training (jobs/precompute.py).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.config import SPLITS
from raytune_llm.data.encoding.block import PLACES, Block, Encode, Refused, encode_block, merged
from raytune_llm.data.encoding.cache import Found, cache_key, find, new_entry
from raytune_llm.data.encoding.workers import map_batches, num_cpus
from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.files import Splits
from raytune_llm.data.progress import RecordProgress
from raytune_llm.data.reading.problems import Problems
from raytune_llm.data.records import Record
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.data.tables.record_table import RecordTable
from raytune_llm.data.tokenizing.tokens import Tokens, Truncation

LARGE_RECORDS = 10_000
"""From here on records are encoded by several processes, which take seconds to start, and kept in the cache."""
BATCH_RECORDS = 256


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Records of a split with their token sequences."""

    records: Sequence[Record]
    examples: Sequence[Example]
    """Those of which truncation left something, in the records' order."""
    places: NDArray[np.int64]
    """Which record each example belongs to; ascending."""
    truncation: Truncation
    """Counted while these records were encoded."""

    @property
    def encoded(self) -> list[Example | None]:
        """One for each record; None where truncation left nothing to learn from."""
        found: list[Example | None] = [None] * len(self.records)
        for place, example in zip(self.places.tolist(), self.examples, strict=True):
            found[place] = example
        return found

    @property
    def rows(self) -> NDArray[np.int64]:
        """Which example belongs to each record, (records,); -1 where truncation left nothing."""
        found = np.full(len(self.records), -1, dtype=np.int64)
        found[self.places] = np.arange(len(self.places))
        return found

    def part(self, first: int, end: int) -> EncodedSplit:
        """The records [first, end), and the truncation of all."""
        low, high = np.searchsorted(self.places, [first, end]).tolist()
        return EncodedSplit(
            self.records[first:end], self.examples[low:high], self.places[low:high] - first, self.truncation
        )

    def pairs(self) -> list[tuple[Record, Example]]:
        """The records with an example, and that example."""
        both = zip(self.places.tolist(), self.examples, strict=True)
        return [(self.records[place], example) for place, example in both]

    def with_examples(self, examples: Sequence[Example]) -> EncodedSplit:
        """The same records with other examples in the places of `examples`, in their order."""
        if len(examples) != len(self.examples):
            raise ValueError(f"{len(examples)} examples given for the {len(self.examples)} of the split")
        return replace(self, examples=examples)

    def drawn(self, count: int | None, seed: int) -> EncodedSplit:
        """At most `count` of the records, as `draw_indices` draws them."""
        if count is None or count >= len(self.records):
            return self
        return self.select(draw_indices(len(self.records), count, seed))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> EncodedSplit:
        """These records, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = self.rows[chosen]
        examples = ExampleTable.of(self.examples).select(rows[rows >= 0])
        return replace(self, records=_chosen(self.records, chosen), examples=examples, places=np.flatnonzero(rows >= 0))


@dataclass(frozen=True)
class EncodedSplits:
    """The encoded records of a job; splits without records are empty."""

    train: EncodedSplit
    eval: EncodedSplit
    test: EncodedSplit
    max_tokens: int
    """Longest sequence; for encoder-decoder bases, of either side."""
    is_encoder_decoder: bool

    def without_records(self) -> EncodedSplits:
        """The examples alone, to be sent elsewhere."""
        return self._with_records([()] * 3)

    def with_records(self, owner: EncodedSplits) -> EncodedSplits:
        """With the records of the splits that these were made from, by `without_records`."""
        return self._with_records([owner.train.records, owner.eval.records, owner.test.records])

    def _with_records(self, records: Sequence[Sequence[Record]]) -> EncodedSplits:
        splits = (self.train, self.eval, self.test)
        train, evaluation, test = (replace(split, records=own) for split, own in zip(splits, records, strict=True))
        return replace(self, train=train, eval=evaluation, test=test)

    def items(self) -> Iterator[tuple[str, EncodedSplit]]:
        """The splits that have records, by name."""
        yield from ((name, split) for name in ("train", "eval", "test") if len((split := getattr(self, name)).records))


def encode_splits(splits: Splits, tokens: Tokens, encode: Encode) -> EncodedSplits:
    """All records of a job, each encoded once. Raises DataError as `encode_split` does, for all splits together."""
    encoded, refused = encode_each(splits, tokens, encode)
    problems = Problems()
    for name, places in refused.items():
        _add_problems(problems, places, partial(splits.where, name))
    if problems.total:
        raise problems.error()
    return encoded


def encode_each(splits: Splits, tokens: Tokens, encode: Encode) -> tuple[EncodedSplits, dict[str, Refused]]:
    """All records of a job, each encoded once, and those of each split that can't be, which have no example."""
    found = {name: _encode(name, getattr(splits, name), tokens, encode) for name in SPLITS}
    train, *others = (encoded for encoded, _ in found.values())
    evaluation, test = (with_num_bytes(encoded, tokens) for encoded in others)
    encoded = EncodedSplits(train, evaluation, test, tokens.max_tokens, tokens.is_encoder_decoder)
    return encoded, {name: refused for name, (_, refused) in found.items()}


def encode_split(
    name: str,
    records: Sequence[Record],
    tokens: Tokens,
    encode: Encode,
    indices: Sequence[int] | None = None,
    where: Callable[[int], str] | None = None,
) -> EncodedSplit:
    """The records of one split, those of `indices` only where they are given; `tokens` keeps its own counts. `where`
    names a record by its index; None = split and number.

    Raises:
        DataError: records can't be encoded; each kind of reason with the first of them.
    """
    chosen = records if indices is None else _chosen(records, indices)
    encoded, refused = _encode(name, chosen, tokens, encode)
    if refused:
        problems = Problems()
        place_of = where or (lambda index: f"data.{name}, record {index + 1}")
        _add_problems(problems, refused, lambda place: place_of(place if indices is None else indices[place]))
        raise problems.error()
    return with_num_bytes(encoded, tokens)


def with_num_bytes(split: EncodedSplit, tokens: Tokens) -> EncodedSplit:
    """The split with the bytes of its targets: what its labels say, so cut where they are, without the tokens that end
    an answer."""
    table, first = ExampleTable.of(split.examples), 0 if tokens.is_encoder_decoder else 1
    for name, column in table.columns.items():
        labels = column.all_labels()
        ids = [row[row != IGNORED].tolist() for row in (labels[place][first:] for place in range(len(table)))]
        texts = tokens.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        table = table.with_field(name, "num_bytes", [len(text.encode()) for text in texts])
    return split.with_examples(table)


def _add_problems(problems: Problems, refused: Refused, where: Callable[[int], str]) -> None:
    for place, why in refused:
        at = where(place)
        path, _, line = at.rpartition(":")
        number = int(line) if line.isdigit() else None
        problems.add(f"{at}: " if number is None else path, number, why)


def _encode(name: str, records: Sequence[Record], tokens: Tokens, encode: Encode) -> tuple[EncodedSplit, Refused]:
    """The records of a split with their examples, and those that can't be encoded, which have none."""
    if len(records) < LARGE_RECORDS:
        block = encode_block(list(records), tokens, encode)
        arrays, truncation, refused = {**block.arrays}, block.truncation, block.refused
    else:
        (arrays, about), refused = _encode_many(name, records, tokens, encode)
        truncation = Truncation(**about)
    places = arrays.pop(PLACES)
    return EncodedSplit(records, ExampleTable.from_arrays(arrays), places, truncation), refused


def _encode_many(name: str, records: Sequence[Record], tokens: Tokens, encode: Encode) -> tuple[Found, Refused]:
    """The arrays of all blocks end to end and the counts of truncation, from the cache where it has them; and the
    records that can't be encoded."""
    key = cache_key(records, tokens, encode)
    if key is not None and (found := find(key)) is not None:
        arrays, about = found
        return (arrays, about["truncation"]), [(place, why) for place, why in about["refused"]]
    with new_entry(key) as entry:
        counts, first = Truncation(), 0
        refused: Refused = []
        run = partial(encode_block, tokens=tokens, encode=encode)
        for block in _with_progress(name, len(records), map_batches(run, _batches(records), num_cpus())):
            refused += [(first + place, why) for place, why in block.refused]
            counts = merged(counts, block.truncation)
            entry.append(block.arrays | {PLACES: block.arrays[PLACES] + first})
            first += block.num_records
        truncation = dataclasses.asdict(counts)
        return (entry.finish({"truncation": truncation, "refused": refused}), truncation), refused


def _with_progress(name: str, total: int, blocks: Iterable[Block]) -> Iterator[Block]:
    progress = RecordProgress(f"tokenising data.{name}", total)
    try:
        for block in blocks:
            yield block
            progress.add(block.num_records)
    finally:
        progress.close()


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    if isinstance(records, RecordTable):
        return records.batches(BATCH_RECORDS)
    return (list(records[first : first + BATCH_RECORDS]) for first in range(0, len(records), BATCH_RECORDS))


def _chosen(records: Sequence[Record], indices: Sequence[int] | NDArray[np.int64]) -> Sequence[Record]:
    return records.select(indices) if isinstance(records, RecordTable) else [records[index] for index in indices]


def draw_indices(num_records: int, count: int | None, seed: int) -> Sequence[int]:
    """Indices of at most `count` records, the same ones for the same seed; all of them, in order, where `count` is None
    or not less."""
    if count is None or count >= num_records:
        return range(num_records)
    return random.Random(seed).sample(range(num_records), count)
