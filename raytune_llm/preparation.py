"""From files to token sequences, on the driver: everything that can be refused is refused here, before an accelerator
is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raytune_llm.data.doctor import Diagnosis, examine
from raytune_llm.data.files import Splits, load
from raytune_llm.data.tokens import Tokens
from raytune_llm.job import CheckJob, InputError, SweepJob, TrainJob, require
from raytune_llm.sweep.space import Plan
from raytune_llm.training.trial import Examples, split_batch


@dataclass(frozen=True)
class Prepared:
    """A job's data, sound and encoded."""

    splits: Splits
    tokens: Tokens
    examples: Examples
    diagnosis: Diagnosis


@contextmanager
def input_errors() -> Iterator[None]:
    """What is found wrong in here was given by the user: say so without a traceback."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def prepare(job: CheckJob) -> Prepared:
    """Read, parse, encode and examine the job's data for its base and method. Raises InputError."""
    with input_errors():
        facts = job.model.facts
        max_tokens = facts.max_tokens(job.data.max_tokens)
        splits = load(job.data, job.method.records, job.seed)
        tokens = Tokens(job.model.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=facts.is_encoder_decoder)
        diagnosis = examine(splits, tokens, job.method.encode)
    if job.model.ending.note is not None:
        diagnosis.warnings.append(job.model.ending.note)
    if diagnosis.problems:
        raise InputError(diagnosis.text())
    examples = Examples(diagnosis.examples.get("train", []), diagnosis.examples.get("eval", []))
    return Prepared(splits, tokens, examples, diagnosis)


def check_knobs(job: TrainJob) -> None:
    """Refuse an adapter that the base can't take and a batch that can't be divided. Raises InputError."""
    with input_errors():
        swept = job.sweep.axes() if isinstance(job, SweepJob) else {}
        if "tuning.adapter_size" not in swept:
            job.adapter.check(job.tuning.adapter_size, job.model.facts)
        if "tuning.batch_size" not in swept:
            split_batch(job.tuning, job.scaling.num_workers)


def check_sweep(job: SweepJob, planned: Plan) -> None:
    """Refuse a space with points that the base can't take, and a port that is taken, before anything runs. Raises
    InputError."""
    with input_errors():
        job.sweep.search.param_space(planned)
        reason = job.sweep.backend.why_not(job, planned)
        require(reason is None, "sweep/backend", type(job.sweep.backend).__name__, f"auto or ray_train ({reason})")
        for size in candidates(job, "tuning.adapter_size"):
            job.adapter.check(size, job.model.facts)
        for batch_size in candidates(job, "tuning.batch_size"):
            split_batch(dataclasses.replace(job.tuning, batch_size=batch_size), job.scaling.num_workers)
        if job.serve.deploy:
            job.serve.check_port()


def candidates(job: SweepJob, key: str) -> list[Any]:
    return dict(job.sweep.candidates()).get(key, [])
