"""A run's report as files of its folder: report.json, report.html, report.png.

A report never fails a run, whose version is published by then: what goes wrong is printed in one line, with the
traceback in report-error.txt, and the run ends as it would have. Each file is written as soon as it is made, so that a
page that can't be drawn doesn't cost the data. A resumed run writes all of them again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from raytune_llm.errors import first_line
from raytune_llm.jobs.report.data import RunReport
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage

PAGE, DATA, PICTURE, ERROR = "report.html", "report.json", "report.png", "report-error.txt"


def write_run_report(run_dir: str, make: Callable[[], RunReport]) -> str | None:
    """Make the report and write it into a run's folder, a path or URI; the page's path, None where there is none."""
    try:
        storage = open_storage(run_dir)
        report = make()
        storage.write(DATA, to_json(report.to_dict(), indent=1).encode())
        from raytune_llm.jobs.report.page import render
        from raytune_llm.jobs.report.png import render_png

        storage.write(PAGE, render(report).encode())
        storage.write(PICTURE, render_png(report))
        storage.delete(ERROR)
    except Exception as error:
        _explain(run_dir, error)
        return None
    return f"{run_dir}/{PAGE}"


def _explain(run_dir: str, error: Exception) -> None:
    found = f"! the report of the run wasn't written: {type(error).__name__}: {first_line(error)}"
    try:
        open_storage(run_dir).write(ERROR, "".join(traceback.format_exception(error)).encode())
        print(f"{found}; the traceback is in {run_dir}/{ERROR}, the version is published all the same", flush=True)
    except Exception:
        print(f"{found}; the version is published all the same", flush=True)
        traceback.print_exception(error)
