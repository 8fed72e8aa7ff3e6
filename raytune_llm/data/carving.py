"""An eval set carved from train, where none is given."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from raytune_llm.data.encoding.workers import BLOCK_RECORDS, MANY_RECORDS, map_batches, num_cpus
from raytune_llm.data.findings import many
from raytune_llm.data.parts import answer_of, is_instruction, prompt_key, prompt_of, text_key
from raytune_llm.data.question import plain
from raytune_llm.data.reading.problems import DataError
from raytune_llm.data.records import Record
from raytune_llm.data.tables.record_table import Serialiser

CARVED_SHARE = 0.2
"""At most this share of train becomes the carved eval set."""
FEWEST_TO_CARVE = 5
ODD = np.uint64(0x9E3779B97F4A7C15)
"""Mixes the hashes of prompt and answer."""


def carve(records: Sequence[Record], size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of train and of an eval set of at most `size` different records, whose prompts don't occur in train.

    Where a few prompts are instructions for all records, prompt and answer count together. Which records are chosen
    depends on them and the seed alone, so that more data move few of them; orders are kept.

    Raises:
        DataError: there are fewer than 5 different records.
    """
    whole, prompts, answers = _hashes(records)
    with_answer = is_instruction(len(np.unique(prompts)), len(prompts))
    groups = prompts ^ (answers * ODD) if with_answer else prompts
    first = np.unique(whole, return_index=True)[1]
    names, sizes = np.unique(groups[first], return_counts=True)
    room = min(size, int(len(first) * CARVED_SHARE))
    order = [hashlib.blake2b(f"{seed}:{name}".encode()).digest() for name in names.tolist()]
    chosen = []
    for place in sorted(range(len(names)), key=order.__getitem__):
        if sizes[place] <= room:
            chosen.append(names[place])
            room -= int(sizes[place])
    if not chosen:
        found = f"{many(len(first), 'different record')} with {many(len(names), 'different prompt')}"
        expected = f"too few to carve an eval set from, expected at least {FEWEST_TO_CARVE}; or name data.eval"
        raise DataError([f"data.train: found {found}, {expected}"], 1)
    held = np.isin(groups, chosen)
    return np.flatnonzero(~held), np.sort(first[held[first]])


def _hashes(records: Sequence[Record]) -> list[NDArray[np.uint64]]:
    """What `hashes_of` gives, of many records by several processes."""
    blocks = (records[first : first + BLOCK_RECORDS] for first in range(0, len(records), BLOCK_RECORDS))
    num_workers = num_cpus() if len(records) >= MANY_RECORDS else 1
    found = [hashes_of(()), *map_batches(hashes_of, blocks, num_workers)]
    return [np.concatenate(one) for one in zip(*found, strict=True)]


def hashes_of(records: Sequence[Record]) -> tuple[NDArray[np.uint64], ...]:
    """64 bits of each record, of its prompt and of its answer, case and white space aside, (n,) each; the same in every
    process."""
    found: tuple[array[int], ...] = (array("Q"), array("Q"), array("Q"))
    dumps = Serialiser()
    for record in records:
        prompt, answer = prompt_key(plain(prompt_of(record))), text_key(plain(answer_of(record) or ""))
        for into, content in zip(found, (dumps(record), prompt.encode(), answer.encode()), strict=True):
            into.append(xxhash.xxh3_64_intdigest(content))
    return tuple(np.frombuffer(one, dtype=np.uint64) for one in found)
