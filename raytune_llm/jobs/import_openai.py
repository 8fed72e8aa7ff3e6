"""From files made for OpenAI's fine-tuning to sweeps on them: what each file is, what the data check finds, and the
command that tunes on it.

Chats with weights and tools, the old prompts with completions, and preferences are read as they are
(data/dialects/dialect.py). Leaves out files for reinforcement fine-tuning: their graders have no counterpart.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.doctor.diagnosis import UnusableData
from raytune_llm.data.findings import many
from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.sources import Unreadable, expand
from raytune_llm.data.reading.streams import FAILURES
from raytune_llm.data.records import Preference, RecordError
from raytune_llm.errors import InputError
from raytune_llm.jobs import config
from raytune_llm.jobs.help import called
from raytune_llm.jobs.schema import DataJob, ImportOpenAIJob, SweepJob
from raytune_llm.methods.base import Method
from raytune_llm.models.base import EMBEDDED, Base
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.quoting import override
from raytune_llm.sweep.tables import text_table

if TYPE_CHECKING:
    from raytune_llm.data.doctor.results import Results

LOOKED_AT = 50
"""First records of a file that tell its method."""


@dataclass(frozen=True)
class Found:
    """A file and what it is."""

    path: str
    method: Method
    records: int
    """To train on, those to evaluate on included."""
    tokens: int
    """Of one pass over them."""
    verdict: str
    problems: tuple[str, ...]
    is_usable: bool


def run_import(job: ImportOpenAIJob) -> str | None:
    """Print what the files are and how to tune on them; with start, do it; with answers, compare. The version that was
    published, if any. Raises InputError."""
    from raytune_llm.jobs.old_answers import compare_with_old, read_answers

    check(job)
    old = [] if job.answers is None else read_answers(job.answers)
    found = inspect(job)
    if found:
        print(text(job, found), flush=True)
    reference = job.version
    if job.start and job.plan:
        from raytune_llm.jobs.plan import plan_job

        print(plan_job(sweep_of(job, found)), flush=True)
        return None
    if job.start:
        reference = started(sweep_of(job, found))
    if old:
        assert reference is not None
        print(compare_with_old(job, old, reference), flush=True)
    return reference if job.start else None


def started(sweep: SweepJob) -> str:
    """The version of a sweep that runs now, or has ended before."""
    from raytune_llm.jobs.run_result import already_published
    from raytune_llm.jobs.sweep import run_sweep

    return already_published(sweep) or run_sweep(sweep).version.reference


def check(job: ImportOpenAIJob) -> None:
    """Refuse options that don't go together. Raises InputError."""
    if job.data.train is None and job.answers is None:
        raise InputError("data.train=null and answers=null: name the files, or a folder of them, by data.train=PATH")
    if job.answers is None and job.version is not None:
        raise InputError(f"adapter={job.version} is compared with old answers, and answers=null: give their file")
    if job.answers is not None and job.start == (job.version is not None):
        raise InputError(
            f"answers={job.answers} needs one version to compare: adapter=NAME@champion of the registry, or the one "
            "that start=true publishes"
        )


def inspect(job: ImportOpenAIJob) -> list[Found]:
    """Each file of data.train."""
    files = [file for source in job.data.sources("train") for file in expand(source)]
    if unreadable := [file for file in files if isinstance(file, Unreadable)]:
        raise InputError("; ".join(f"{file.path} {file.reason}" for file in unreadable))
    return [inspect_file(job, file.path) for file in files]


def inspect_file(job: ImportOpenAIJob, path: str) -> Found:
    """Which method a file is for, and what the data check finds in it."""
    from raytune_llm.jobs.prepare import prepare

    method = dpo() if has_preferences(job, path) else job.method
    data = job.data.with_train(path)
    checked = DataJob(
        home=job.home, seed=job.seed, model=job.model, data=data, method=method, evaluation=job.evaluation
    )
    try:
        diagnosis: Results = prepare(checked).diagnosis
    except UnusableData as error:
        diagnosis = error.diagnosis
    except InputError as error:
        return Found(path, method, 0, 0, "not usable", (str(error),), is_usable=False)
    splits = [facts for name, facts in diagnosis.splits.items() if name == "train" or diagnosis.carved]
    lengths = [part for facts in splits for part in (facts.prompt_tokens, facts.completion_tokens) if part is not None]
    return Found(
        path,
        method,
        sum(facts.num_records for facts in splits),
        sum(part.total for part in lengths),
        diagnosis.verdict.partition(":")[0],
        (*diagnosis.problems, *diagnosis.warnings),
        is_usable=not diagnosis.problems,
    )


def has_preferences(job: ImportOpenAIJob, path: str) -> bool:
    """Whether a file's first records that can be read are preferences; problems are the data check's matter."""
    reader = Reader((Preference,), columns=job.data.columns, ignore=job.data.ignore)
    try:
        rows = [raw for _, raw in islice(read(path), LOOKED_AT)]
    except FAILURES:
        return False
    return any(is_preference(reader, raw) for raw in rows)


def is_preference(reader: Reader, raw: object) -> bool:
    try:
        reader.read(raw)
    except RecordError:
        return False
    return True


def dpo() -> Method:
    """The method for preferences, as conf/ has it."""
    method: Method = config.load("check", ["model=demo", "data=demo_preference", "method=dpo"]).method
    return method


def text(job: ImportOpenAIJob, found: list[Found]) -> str:
    """A table of the files, what is wrong in them, and the next commands."""
    columns = ("file", "method", "records", "tokens", "verdict")
    rows = [
        (Path(one.path).name, name_of(one.method, Method), str(one.records), str(one.tokens), one.verdict)
        for one in found
    ]
    lines = [text_table(columns, rows)]
    for one in found:
        lines += [f"\n{one.path}:", *(f"  {problem}" for problem in one.problems)] if one.problems else []
    usable = [one for one in found if one.is_usable]
    lines += [f"\nnext  {command(job, one, alone=len(usable) == 1)}" for one in usable]
    return "\n".join(lines)


def command(job: ImportOpenAIJob, found: Found, *, alone: bool) -> str:
    """The sweep for a file, as a shell takes it; versions of several files are named after them."""
    name = job.name if alone else re.sub(r"[^A-Za-z0-9]+", "-", Path(found.path).stem).strip("-") or job.name
    words = [
        *model_words(job.model),
        override("method", name_of(found.method, Method)),
        override("data.train", found.path),
        *data_words(job),
        override("name", name),
        override("home", job.home),
    ]
    return f"{called('sweep')} {shlex.join(words)}"


def model_words(base: Base) -> list[str]:
    """The overrides that give this base: its name in conf/model, or each key that differs from the defaults."""
    known = EMBEDDED if base.loading()["name_or_path"] == EMBEDDED else base.name_or_path
    for file in sorted((config.CONF / "model").glob("*.yaml")):
        if known in file.read_text() and config.load("check", [f"model={file.stem}", "data.train=x"]).model == base:
            return [f"model={file.stem}"]
    plain = config.load("check", ["model.name_or_path=x", "data.train=x"]).model
    return [override(f"model.{key}", value) for key, value in changed(base, plain)]


def data_words(job: ImportOpenAIJob) -> list[str]:
    """The overrides of how records are read, and of the other splits."""
    plain = config.load("check", ["model=demo", "data.train=x"]).data
    return [override(f"data.{key}", value) for key, value in changed(job.data, plain) if key != "train"]


def changed(value: Any, plain: Any) -> Iterator[tuple[str, Any]]:
    """The fields in which a config differs from another, as values of a command line."""
    for field in fields(value):
        own = getattr(value, field.name)
        if own != getattr(plain, field.name):
            yield field.name, own.value if isinstance(own, Enum) else own


def sweep_of(job: ImportOpenAIJob, found: list[Found]) -> SweepJob:
    """The sweep that start runs. Raises InputError unless there is one file that can be used."""
    if len(found) != 1 or not found[0].is_usable:
        usable = sum(one.is_usable for one in found)
        raise InputError(
            f"start=true sweeps on one file, and data.train={job.data.train} has {many(len(found), 'file')}, {usable} "
            "of them usable; name one, or run the commands above"
        )
    [file] = found
    own = {field.name: getattr(job, field.name) for field in fields(SweepJob)}
    return SweepJob(**own | {"method": file.method, "data": job.data.with_train(file.path)})
