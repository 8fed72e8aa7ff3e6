"""The data of a job and of its earlier stages, examined without an accelerator; reports for programs and people."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from raytune_llm.jobs.data_report import write_data_report
from raytune_llm.jobs.schema import CheckJob, DataJob
from raytune_llm.jobs.setup import read_stage_data

if TYPE_CHECKING:
    from raytune_llm.data.files import Splits


def check_data(job: CheckJob) -> None:
    """Examine the records, print what was found and write it into job.report, or below home/checks. Raises InputError
    for data that can't be used."""
    from raytune_llm.data.files import load

    splits = load(job.data, job.method.records, job.seed)
    of_stages = read_stage_data(job, splits)
    folder = job.report or f"{job.home}/checks/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    _check_one(job, splits, folder)
    for name, (stage_job, own) in of_stages.items():
        print(f"\nearlier stage {name}: {stage_job.data.train}")
        _check_one(stage_job, own, f"{folder}/{name}")


def _check_one(job: DataJob, splits: Splits, folder: str) -> None:
    """Print the diagnosis of a job's data and write its report, also where it is refused. Raises InputError."""
    from raytune_llm.data.doctor.diagnosis import UnusableData
    from raytune_llm.jobs.prepare import prepare

    try:
        diagnosis = prepare(job, splits).diagnosis
    except UnusableData as error:
        write_data_report(job, error.diagnosis, splits, folder)
        raise
    print(diagnosis.text(whole=True))
    write_data_report(job, diagnosis, splits, folder)
