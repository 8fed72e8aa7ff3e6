"""A diagnosis as files: report.json for programs, report.html for people."""

from __future__ import annotations

from raytune_llm.data.doctor.page import render
from raytune_llm.data.doctor.results import Results
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage


def write_report(diagnosis: Results, folder: str, title: str = "data") -> tuple[str, str]:
    """Write both into a folder or URI; their paths. Raises OSError, or InputError for a scheme that can't be opened."""
    storage = open_storage(folder)
    storage.write("report.json", to_json(diagnosis.to_dict(), indent=2).encode())
    storage.write("report.html", render(diagnosis, title).encode())
    return f"{storage.root}/report.json", f"{storage.root}/report.html"
