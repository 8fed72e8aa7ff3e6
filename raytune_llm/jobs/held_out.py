"""The records on which a sweep's first configurations are compared again, which no trial has seen: sweep/confirm.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.encoding.encode import EncodedSplit, EncodedSplits, draw_indices
from raytune_llm.data.examples import Examples
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.errors import require
from raytune_llm.jobs.schema import DataJob, SweepJob
from raytune_llm.sweep.confirm import Records

FEWEST_HALVED = 40
"""Eval records of which half is held out; of fewer neither half would tell anything."""


def check_held_out(job: SweepJob, encoded: EncodedSplits) -> None:
    """Refuse to confirm on records that there are not. Raises InputError."""
    confirm = job.sweep.confirm
    if confirm.is_on and confirm.records is Records.test:
        allowed = "auto or eval, as data.test=null"
        require(len(encoded.test.records) > 0, "sweep.confirm.records", confirm.records.value, allowed)


def held_out(job: SweepJob, encoded: EncodedSplits) -> tuple[str, EncodedSplit] | None:
    """The records to confirm on, at most evaluation.max_examples, with the name of their split; None where nothing is
    confirmed, or where there are too few."""
    if not job.sweep.confirm.is_on:
        return None
    if not _halves_eval(job, encoded):
        found = encoded.test.drawn(job.evaluation.max_examples, job.seed)
        return ("test", found) if len(found.records) else None
    if (held := eval_halves(job, encoded)) is None:
        return None
    return "held-out eval", encoded.eval.select(held[1]).drawn(job.evaluation.max_examples, job.seed)


def eval_halves(job: DataJob, encoded: EncodedSplits) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Indices of the eval records that stop and rank trials, and of those that are held out, drawn with the job's seed;
    None where trials see all of them."""
    count = len(encoded.eval.records)
    if not isinstance(job, SweepJob) or not job.sweep.confirm.is_on or count < FEWEST_HALVED:
        return None
    if not _halves_eval(job, encoded):
        return None
    seen = np.sort(np.asarray(draw_indices(count, count // 2, job.seed), dtype=np.int64))
    return seen, np.setdiff1d(np.arange(count), seen)


def seen_by_trials(job: DataJob, encoded: EncodedSplits) -> EncodedSplits:
    """The records with those of eval only that stop and rank trials."""
    halves = eval_halves(job, encoded)
    return encoded if halves is None else replace(encoded, eval=encoded.eval.select(halves[0]))


def examples_of_trials(job: DataJob, encoded: EncodedSplits, examples: Examples) -> Examples:
    """The examples, in the order of the records, with those of eval only that stop and rank trials."""
    halves = eval_halves(job, encoded)
    if halves is None:
        return examples
    rows = encoded.eval.rows[halves[0]]
    return replace(examples, eval=ExampleTable.of(examples.eval).select(rows[rows >= 0]))


def _halves_eval(job: SweepJob, encoded: EncodedSplits) -> bool:
    records = job.sweep.confirm.records
    return records is Records.eval or (records is Records.auto and not len(encoded.test.records))
