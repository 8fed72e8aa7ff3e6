"""A diagnosis as files: report.json for programs, report.html for people."""

from __future__ import annotations

from raytune_llm.data.doctor.page import render
from raytune_llm.data.doctor.results import Results
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage


def write_report(
    diagnosis: Results, folder: str, title: str = "data", *, parameters: int | None = None
) -> tuple[str, str]:
    """Write both into a folder or URI; their paths. `parameters`: of the base, for what reckons with report.json.
    Raises OSError, or InputError for a scheme that can't be opened."""
    storage = open_storage(folder)
    content = {**diagnosis.to_dict(), "parameters": parameters}
    storage.write("report.json", to_json(content, indent=2).encode())
    storage.write("report.html", render(diagnosis, title).encode())
    return f"{storage.root}/report.json", f"{storage.root}/report.html"
