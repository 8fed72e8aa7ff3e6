"""What the doctor found in a job's data, as files in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytune_llm.data.config import SPLITS
from raytune_llm.data.findings import many
from raytune_llm.jobs.schema import DataJob
from raytune_llm.stores.storage import open_storage

if TYPE_CHECKING:
    from raytune_llm.data.doctor.results import Results
    from raytune_llm.data.files import Splits


def write_data_report(job: DataJob, diagnosis: Results, splits: Splits, folder: str) -> None:
    """Write what the doctor found, and the lines that were left out, into a folder, and print where they are. A folder
    that can't be written to is no reason to stop."""
    from raytune_llm.data.doctor.report import write_report as write_diagnosis

    title = " · ".join(dict.fromkeys(source.path for split in SPLITS for source in job.data.sources(split)))
    try:
        _, page = write_diagnosis(diagnosis, folder, title, parameters=job.model.facts.num_parameters)
        print(f"report: {page}", flush=True)
        if splits.rejects.count:
            storage = open_storage(folder)
            storage.write("rejects.jsonl", splits.rejects.content())
            print(
                f"{many(splits.rejects.count, 'line')} left out, with the reasons: {storage.root}/rejects.jsonl",
                flush=True,
            )
    except OSError as error:
        print(f"report: not written: {folder}: {error}", flush=True)
