"""The annotation itself: records → requests that aren't cached → a teacher's workers, by Ray Data → annotated records.

A worker caches the responses to a batch before it takes the next one: a job that is killed at any moment loses at most
one batch of each of its workers, and the same command resumes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data

from raytune_llm.annotation.cache import AnswerCache, digest
from raytune_llm.annotation.filters import Annotation
from raytune_llm.annotation.prompt import Prompt
from raytune_llm.annotation.reading import read
from raytune_llm.annotation.report import AnnotationReport, Progress
from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, Teacher, TeacherError
from raytune_llm.data.files import read_records
from raytune_llm.data.reading.sources import Locations
from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError
from raytune_llm.models.openai_client import Secret
from raytune_llm.stores.storage import open_storage

MAX_BLOCKS = 2000
"""Most blocks of Ray Data's dataset; each holds one batch where there are fewer."""


@dataclass(frozen=True)
class RequestPlan:
    """A job's records with their requests."""

    records: list[Rationale]
    requests: list[list[Request]]
    """Of each record; empty for a record that is skipped."""
    warnings: list[str]


def plan_requests(records: list[Rationale], prompt: Prompt, annotation: Annotation, seed: int) -> RequestPlan:
    """The requests for those records that need an annotation. Raises DataError for examples that can't be read."""
    is_own = prompt.examples is None
    source = records if is_own else read_records(str(prompt.examples), "prompt.examples", (Rationale,))
    solved = [record for record in source if record.label is not None and record.rationale is not None]
    preamble = prompt.preamble(solved, seed)
    requests = []
    for record in records:
        needs_annotation = record.rationale is None or annotation.replace
        if needs_annotation and not (prompt.needs_label and record.label is None):
            text = prompt.render(preamble, record)
            requests.append([Request(text, sample) for sample in range(annotation.num_samples)])
        else:
            requests.append([])
    warnings = []
    if len(solved) < prompt.num_examples:
        place = "data.train" if is_own else prompt.examples
        warnings.append(
            f"{len(solved)} of prompt.num_examples={prompt.num_examples} solved examples: {place} has no more records "
            "with output_text and rationale; a teacher that sees no example may answer in a layout of its own"
        )
    return RequestPlan(records, requests, warnings)


def annotate(
    train: Locations,
    output: str,
    *,
    teacher: Teacher,
    prompt: Prompt,
    annotation: Annotation,
    home: str,
    seed: int,
    use_gpu: bool,
) -> AnnotationReport:
    """Annotate the records at `train` and write them to `output`.

    Raises:
        DataError, InputError: the records can't be read, there is no such teacher, or it fails.
    """
    plan = plan_requests(read_records(train, "data.train", (Rationale,)), prompt, annotation, seed)
    sampling = annotation.sampling(prompt.stop, seed)
    source = ClientSource(teacher, f"{home}/registry", teacher.credential(), use_gpu)
    cache = AnswerCache.of_teacher(home, teacher.identity(source.registry_dir), sampling)
    known = cache.read()
    unique = dict.fromkeys(request for requests in plan.requests for request in requests)
    new = [request for request in unique if request not in known]
    for warning in plan.warnings:
        print(f"! {warning}", flush=True)
    print(f"{len(unique)} requests to {teacher.name}, {len(unique) - len(new)} of them cached", flush=True)
    progress = Progress(len(new))
    for batch in send(new, source, sampling, cache.root, annotation.batch_size):
        progress.add(batch)
        known |= batch
    report = build_report(plan, known, prompt, annotation, teacher.name)
    folder, _, name = output.rpartition("/")
    open_storage(folder).write(name, report.lines.encode())
    return report.with_usage(new, known)


@dataclass(frozen=True)
class ClientSource:
    """All that a worker needs to open its client."""

    teacher: Teacher
    registry_dir: str
    credential: Secret | None
    use_gpu: bool

    def open(self) -> Client:
        """Load the teacher, or connect to it."""
        return self.teacher.open(self.registry_dir, self.credential, self.use_gpu)


def send(
    requests: Sequence[Request], source: ClientSource, sampling: Sampling, cache_root: str, batch_size: int
) -> Iterator[dict[Request, Response]]:
    """Responses as they come, a batch at a time, already cached. Raises InputError when the teacher fails."""
    if not requests:
        return
    quiet_ray_data()
    workers = source.teacher.workers
    batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
    rows = [{"requests": json.dumps([[one.prompt, one.sample] for one in batch])} for batch in batches]
    results = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map(
        TeacherWorker,
        fn_constructor_args=(source, sampling, cache_root),
        compute=ray.data.ActorPoolStrategy(size=min(workers.num_workers, len(batches))),
        num_cpus=workers.cpus_per_worker,
        num_gpus=1 if source.use_gpu else 0,
    )
    for row in results.iter_rows():
        if row["failure"]:
            raise InputError(f"{row['failure']}\nThe responses so far are cached; the same command resumes.")
        yield {
            Request(prompt, sample): Response(*response) for prompt, sample, *response in json.loads(row["responses"])
        }


def quiet_ray_data() -> None:
    """No progress bars and no messages of Ray Data on this process's terminal; Ray's log files have them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class TeacherWorker:
    """An actor that holds the teacher's client, opened when the first batch isn't cached."""

    def __init__(self, source: ClientSource, sampling: Sampling, cache_root: str) -> None:
        self._source, self._sampling = source, sampling
        self._cache = AnswerCache(cache_root)
        self._client: Client | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        requests = [Request(str(prompt), int(sample)) for prompt, sample in json.loads(row["requests"])]
        try:
            responses = self._cache.batch(requests) or self._complete(requests)
        except TeacherError as error:
            return {"responses": "[]", "failure": str(error)}
        pairs = zip(requests, responses, strict=True)
        return {"responses": json.dumps([_plain(*pair) for pair in pairs]), "failure": ""}

    def _complete(self, requests: list[Request]) -> list[Response]:
        if self._client is None:
            self._client = self._source.open()
        responses = self._client(requests, self._sampling)
        self._cache.add(requests, responses, self._source.teacher.name)
        return responses


def _plain(request: Request, response: Response) -> list[Any]:
    return [request.prompt, request.sample, *(getattr(response, key) for key in Response.__slots__)]


def build_report(
    plan: RequestPlan, known: Mapping[Request, Response], prompt: Prompt, annotation: Annotation, teacher: str
) -> AnnotationReport:
    """Read the responses, vote, filter."""
    report = AnnotationReport()
    for record, requests in zip(plan.records, plan.requests, strict=True):
        if not requests:
            report.skip(record)
            continue
        responses = [known[request] for request in requests]
        selection = annotation.select(record, [read(response.text, prompt) for response in responses])
        origin = {
            "teacher": teacher,
            "prompt_hash": digest(requests[0].prompt),
            "cost_usd": sum(response.cost_usd for response in responses),
        }
        report.add(record, selection, origin, num_cut=sum(response.is_cut for response in responses))
    return report
