"""The stage itself: records → questions not answered yet → a teacher's actors, by Ray Data → records with reasons.

An actor keeps the answers to a batch before it takes the next, so a job that is killed at any moment loses at most one
batch of each of its workers, and the same command goes on from there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raytune_llm.annotation.cache import AnswerCache, digest
from raytune_llm.annotation.filters import Annotation
from raytune_llm.annotation.noise import RESTART, quiet, without_line
from raytune_llm.annotation.prompt import Prompt
from raytune_llm.annotation.reading import read
from raytune_llm.annotation.report import AnnotationReport, Progress
from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, Secret, Teacher, TeacherError
from raytune_llm.data.files import read_records
from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError
from raytune_llm.stores.storage import open_storage

MOST_BLOCKS = 2000
"""Blocks that Ray Data is given at once; a batch a block up to here."""


@dataclass(frozen=True)
class Questions:
    """The records of a job, and what is to be asked about them."""

    records: list[Rationale]
    asks: list[list[Request]]
    """Of each record; empty where nothing is asked."""
    warnings: list[str]

    @classmethod
    def about(cls, records: list[Rationale], prompt: Prompt, annotation: Annotation, seed: int) -> Questions:
        """Raises DataError for examples that can't be read."""
        own = prompt.examples is None
        source = records if own else read_records(str(prompt.examples), "prompt.examples", (Rationale,))
        solved = [record for record in source if record.label is not None and record.rationale is not None]
        head = prompt.head(solved, seed)
        asks = []
        for record in records:
            wanted = record.rationale is None or annotation.replace
            askable = wanted and not (prompt.needs_label and record.label is None)
            text = prompt.ask(head, record) if askable else ""
            asks.append([Request(text, sample) for sample in range(annotation.num_samples)] if askable else [])
        warnings = []
        if len(solved) < prompt.num_examples:
            place = "data.train" if own else prompt.examples
            warnings.append(
                f"{len(solved)} of prompt.num_examples={prompt.num_examples} solved examples: {place} has no more "
                "records with output_text and rationale; a teacher shown none may answer in a layout of its own"
            )
        return cls(records, asks, warnings)


def annotate(
    train: str,
    output: str,
    *,
    teacher: Teacher,
    prompt: Prompt,
    annotation: Annotation,
    home: str,
    seed: int,
    use_gpu: bool,
) -> AnnotationReport:
    """Ask about the records at `train`, write those that come of it to `output`.

    Raises:
        DataError, InputError: the records can't be read, there is no such teacher, or it doesn't answer.
    """
    questions = Questions.about(read_records(train, "data.train", (Rationale,)), prompt, annotation, seed)
    sampling = annotation.sampling(prompt.stop, seed)
    registry_dir = f"{home}/registry"
    try:
        answers = AnswerCache.of(home, teacher.identity(registry_dir), sampling)
        credential = teacher.credential()
    except ValueError as error:
        raise InputError(str(error)) from error
    known = answers.read()
    wanted = dict.fromkeys(ask for asks in questions.asks for ask in asks)
    new = [ask for ask in wanted if ask not in known]
    progress = Progress(len(new))
    for warning in questions.warnings:
        print(f"! {warning}", flush=True)
    print(f"{len(wanted)} questions to {teacher.name}, {len(wanted) - len(new)} of them answered before", flush=True)
    opening = (teacher, registry_dir, credential, use_gpu)
    for batch in ask_all(new, opening, sampling, answers.root, annotation.batch_size):
        progress.add(batch)
        known |= batch
    outcome = chosen(questions, known, prompt, annotation, teacher.name)
    open_storage(output.rpartition("/")[0]).write(output.rpartition("/")[2], outcome.lines.encode())
    return outcome.asked_now(new, known)


Opening = tuple[Teacher, str, Secret | None, bool]


def ask_all(
    asks: Sequence[Request], opening: Opening, sampling: Sampling, root: str, batch_size: int
) -> Iterator[dict[Request, Response]]:
    """Answers as they come, a batch at a time, already kept below root. Raises InputError when the teacher fails."""
    if not asks:
        return
    quiet()
    teacher, use_gpu = opening[0], opening[3]
    batches = [asks[start : start + batch_size] for start in range(0, len(asks), batch_size)]
    rows = [{"batch": json.dumps([[ask.prompt, ask.sample] for ask in batch])} for batch in batches]
    said = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
        TeacherWorker,
        fn_constructor_args=(opening, sampling, root),
        compute=ray.data.ActorPoolStrategy(size=min(teacher.workers.num_workers, len(batches))),
        num_cpus=teacher.workers.cpus_per_worker,
        num_gpus=1 if use_gpu else 0,
    )
    answered = iter(said.iter_rows())
    with without_line(RESTART):  # printed before the first answer
        first = next(answered)
    for row in itertools.chain([first], answered):
        if row["failure"]:
            raise InputError(
                f"{row['failure']}\nWhat was answered so far is kept; the same command goes on from there."
            )
        found = {}
        for line in json.loads(row["said"]):
            prompt, sample, *answer = line
            found[Request(prompt, sample)] = Response(*answer)
        yield found


class TeacherWorker:
    """An actor that holds the teacher."""

    def __init__(self, opening: Opening, sampling: Sampling, root: str) -> None:
        self._opening, self._sampling = opening, sampling
        self._answers = AnswerCache(root)
        self._ask: Client | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        asks = [Request(str(prompt), int(sample)) for prompt, sample in json.loads(row["batch"])]
        try:
            said = self._answers.batch(asks) or self._answered(asks)
        except TeacherError as error:
            return {"said": "[]", "failure": str(error)}
        return {"said": json.dumps([_plain(*pair) for pair in zip(asks, said, strict=True)]), "failure": ""}

    def _answered(self, asks: list[Request]) -> list[Response]:
        teacher, registry_dir, credential, use_gpu = self._opening
        if self._ask is None:
            self._ask = teacher.open(registry_dir, credential, use_gpu)
        said = self._ask(asks, self._sampling)
        self._answers.add(asks, said, teacher.name)
        return said


def _plain(ask: Request, said: Response) -> list[Any]:
    return [ask.prompt, ask.sample, *(getattr(said, key) for key in Response.__slots__)]


def chosen(
    questions: Questions, known: dict[Request, Response], prompt: Prompt, annotation: Annotation, teacher: str
) -> AnnotationReport:
    """What becomes of every record."""
    outcome = AnnotationReport()
    for record, asks in zip(questions.records, questions.asks, strict=True):
        if not asks:
            outcome.keep(record)
            continue
        said = [known[ask] for ask in asks]
        choice = annotation.choose(record, [read(answer.text, prompt) for answer in said])
        origin = {
            "teacher": teacher,
            "prompt_hash": digest(asks[0].prompt),
            "cost_usd": sum(answer.cost_usd for answer in said),
        }
        outcome.decide(record, choice, origin, num_cut=sum(answer.is_cut for answer in said))
    return outcome
