"""What drift is measured on: general prompts, the base's own greedy answers to them and its likeliest tokens there.

The base reads and answers them once. What it gave is kept below home/drift, by what it depends on (the base's revision,
the prompts' tokens, the settings), so that a later run of any job on that base computes nothing. Leaves out the
measure itself (methods/common/drift.py).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from zipfile import BadZipFile

import numpy as np

from raytune_llm import cluster
from raytune_llm.data.config import Data
from raytune_llm.data.examples import IGNORED, Example, Examples, TokenSequence
from raytune_llm.data.findings import many
from raytune_llm.data.guard import guard_prompts
from raytune_llm.data.tables.example_table import ExampleTable, pack
from raytune_llm.data.tables.ragged import Ragged
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError, require
from raytune_llm.evaluation.generate import answer_ids
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.terms import DRIFT
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.schema import DataJob, TrainJob
from raytune_llm.methods.common.drift import ANSWER, TOP_K, drift_terms
from raytune_llm.models.base import Base
from raytune_llm.models.frozen import with_teacher_top_k
from raytune_llm.models.loading import load_model
from raytune_llm.stores.storage import open_storage

FORMAT = 1
"""Of the kept files; part of their names."""


@dataclass(frozen=True)
class Guard:
    """General prompts as a base reads them."""

    prompts: tuple[list[int], ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    """Of an answer."""
    is_own: bool
    """Whether data.guard gave them."""

    def described(self, drift: float) -> str:
        """What was measured by them, for people."""
        count = len(self.prompts)
        prompts = f"{many(count, 'prompt')} of data.guard" if self.is_own else many(count, "general prompt")
        return f"{DRIFT} {drift:.3g} nats a token on {prompts} (base's own answers)"

    def key(self, base: Base, *, use_gpu: bool) -> str:
        """Names what this base gives on a device: sha256, 16 digits."""
        settings = {name: value for name, value in base.loading().items() if name not in ("name_or_path", "revision")}
        made_of = (FORMAT, base.facts.revision_hash, settings, use_gpu, TOP_K, self.stop_ids, self.max_new_tokens)
        content = json.dumps([made_of, self.prompts], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def guard_of(job: DataJob, tokens: Tokens) -> Guard | None:
    """The prompts by which the job measures drift; None where it measures none. Raises InputError, for data.guard that
    nothing would read, too."""
    if not job.scores_drift:
        require(job.data.guard is None, "data.guard", job.data.guard, f"null: {job.why_no_drift}")
        return None
    return make_guard(job.data, job.evaluation, tokens)


def make_guard(data: Data, evaluation: Evaluation, tokens: Tokens) -> Guard:
    """The prompts that data.guard gives, or the embedded ones. Raises InputError."""
    longest = min(evaluation.drift_tokens, tokens.max_tokens // 2)
    texts = guard_prompts(data.guard, tokens)[: evaluation.drift_prompts]
    prompts = tuple(tokens.prompt(text, max_new_tokens=longest) for text in texts)
    return Guard(prompts, tuple(tokens.stop_ids()), longest, data.guard is not None)


def with_guard(examples: Examples, job: TrainJob, guard: Guard | None, *, use_gpu: bool) -> Examples:
    """The examples of trials with those by which drift is measured, where it is. A plan keeps nothing below home."""
    if guard is None:
        return examples
    options: dict[str, Any] = {"batch_size": job.evaluation.batch_size, "use_gpu": use_gpu, "keeps": not job.plan}
    return replace(examples, guard=base_answers(job.home, job.model, guard, **options))


def base_answers(
    home: str, base: Base, guard: Guard, *, batch_size: int, use_gpu: bool, keeps: bool = True
) -> ExampleTable:
    """The prompts with the base's answers: those kept below home, else computed in a Ray task and, if it `keeps` them,
    kept. Raises InputError for a damaged file."""
    storage, name = open_storage(f"{home}/drift"), f"{guard.key(base, use_gpu=use_gpu)}.npz"
    if storage.exists(name):
        try:
            return unpacked(storage.read(name))
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{storage.root}/{name} is damaged ({error}); remove it to have it made anew") from error
    print(f"asking the base {many(len(guard.prompts), 'general prompt')} for drift …", flush=True)
    found = cluster.as_task(answered, use_gpu=use_gpu)(base, guard, batch_size=batch_size, use_gpu=use_gpu)
    if keeps:
        storage.write(name, packed(found))
    return found


def answered(base: Base, guard: Guard, *, batch_size: int, use_gpu: bool) -> ExampleTable:
    """The prompts with the base's greedy answers as labels, their log-probabilities and its likeliest tokens."""
    model, tokenizer = load_model(base, None, use_gpu=use_gpu), base.tokenizer()
    reading: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "batch_size": batch_size}
    limits: dict[str, Any] = {"max_new_tokens": guard.max_new_tokens, "stop_ids": guard.stop_ids}
    answers = answer_ids(model, guard.prompts, **limits, **reading)
    examples = examples_of(guard.prompts, answers, is_encoder_decoder=bool(model.config.is_encoder_decoder))
    table = with_teacher_top_k(model, examples, top_k=TOP_K, vocabulary=len(tokenizer), **reading)
    return table.with_field(ANSWER, "reference", [answer_logprob(example[ANSWER]) for example in table])


def answer_logprob(sequence: TokenSequence) -> float:
    """log p of an answer's tokens, nats, each of which is among the likeliest ones that the base gave in its place."""
    assert sequence.teacher is not None
    labels = np.array([label for label in sequence.labels if label != IGNORED])
    is_label = sequence.teacher.ids == labels[:, None]
    assert is_label.any(-1).all(), "a greedy answer has a token that isn't among the likeliest"
    return float(sequence.teacher.logprobs[:, : is_label.shape[1]][is_label].sum(dtype=np.float64))


def drift_of(base: Base, location: str, examples: Sequence[Example], *, batch_size: int, use_gpu: bool) -> float:
    """eval/drift of the tuned model at a location, by what `base_answers` gave."""
    model, pad_id = load_model(base, location, use_gpu=use_gpu), base.tokenizer().pad_token_id
    return evaluate(model, examples, drift_terms, pad_id=pad_id, batch_size=batch_size).metrics()[DRIFT]


def examples_of(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], *, is_encoder_decoder: bool
) -> Sequence[Example]:
    """Each prompt with its answer as labels."""
    pairs = zip(prompts, answers, strict=True)
    if is_encoder_decoder:
        return [{ANSWER: TokenSequence(prompt, answer)} for prompt, answer in pairs]
    return [{ANSWER: TokenSequence(prompt + answer, [IGNORED] * len(prompt) + answer)} for prompt, answer in pairs]


def packed(table: ExampleTable) -> bytes:
    """The table as the bytes of an .npz file."""
    column = table.columns[ANSWER]
    assert column.references is not None and column.teacher is not None
    ids, logprobs = (part.compact() for part in column.teacher)
    teacher = {"top_ids": ids.flat, "top_logprobs": logprobs.flat, "top_lengths": ids.lengths}
    arrays: dict[str, Any] = {**pack(list(table)), "references": column.references, **teacher}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def unpacked(content: bytes) -> ExampleTable:
    """The table of which `packed` made these bytes. Raises ValueError, KeyError, EOFError or BadZipFile for others."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    references = arrays.pop("references")
    ids, logprobs, lengths = (arrays.pop(name) for name in ("top_ids", "top_logprobs", "top_lengths"))
    column = ExampleTable.from_arrays(arrays).columns[ANSWER]
    teacher = (Ragged.of(ids, lengths), Ragged.of(logprobs, lengths))
    return ExampleTable({ANSWER: replace(column, references=references, teacher=teacher)})
