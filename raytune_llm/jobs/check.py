"""The data of a job and of its earlier stages, examined without an accelerator; reports for programs and people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raytune_llm.jobs.reports import write_rejects
from raytune_llm.jobs.schema import CheckJob
from raytune_llm.jobs.setup import read_stage_data

if TYPE_CHECKING:
    from raytune_llm.data.doctor.diagnosis import Diagnosis
    from raytune_llm.data.files import Splits


def check_data(job: CheckJob) -> None:
    """Examine the records, print what was found and write it below home/checks. Raises InputError for data that can't
    be used."""
    from raytune_llm.data.files import load

    splits = load(job.data, job.method.records, job.seed)
    of_stages = read_stage_data(job, splits)
    folder = f"{job.home}/checks/{time.strftime('%Y%m%d-%H%M%S')}"
    _check_one(job, splits, folder)
    for name, (stage_job, own) in of_stages.items():
        print(f"\nearlier stage {name}: {stage_job.data.train}")
        _check_one(stage_job, own, f"{folder}/{name}")


def _check_one(job: CheckJob, splits: Splits, folder: str) -> None:
    """Print the diagnosis of a job's data and write its report, also where it is refused. Raises InputError."""
    from raytune_llm.data.doctor.diagnosis import UnusableData
    from raytune_llm.jobs.prepare import prepare

    try:
        diagnosis = prepare(job, splits).diagnosis
    except UnusableData as error:
        _report(job, error.diagnosis, splits, folder)
        raise
    print(diagnosis.text(whole=True))
    _report(job, diagnosis, splits, folder)


def _report(job: CheckJob, diagnosis: Diagnosis, splits: Splits, folder: str) -> None:
    """Write the report of a check and the lines left out, and print where they are."""
    from raytune_llm.data.config import SPLITS
    from raytune_llm.data.doctor.report import write_report

    title = " · ".join(dict.fromkeys(source.path for split in SPLITS for source in job.data.sources(split)))
    try:
        _, page = write_report(diagnosis, folder, title)
        print(f"report: {page}")
        write_rejects(splits, folder)
    except OSError as error:
        print(f"report: not written: {folder}: {error}")
