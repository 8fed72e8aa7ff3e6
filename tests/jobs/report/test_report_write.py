"""A report is written whole, on any storage, and never fails a run."""

import json
from pathlib import Path

import pytest
from report_world import sweep_report

from raytune_llm.jobs.report.write import write_run_report
from raytune_llm.stores.storage import open_storage


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_all_files_are_written(tmp_path, kind):
    folder = str(tmp_path) if kind == "local" else "memory://reports/run"
    open_storage(folder).write("report-error.txt", b"of an earlier start")
    assert write_run_report(folder, lambda: sweep_report(2)) == f"{folder}/report.html"
    storage = open_storage(folder)
    assert json.loads(storage.read("report.json"))["version"] == "demo@3"
    assert storage.read("report.html").startswith(b"<!doctype html>")
    assert storage.read("report.png").startswith(b"\x89PNG")
    assert not storage.exists("report-error.txt")


def test_a_report_that_fails_is_a_line_and_a_file(tmp_path, capsys):
    def make():
        raise RuntimeError("no such trial\nmore")

    assert write_run_report(str(tmp_path), make) is None
    [line] = capsys.readouterr().out.splitlines()
    assert "RuntimeError: no such trial" in line and "report-error.txt" in line and "published all the same" in line
    assert "in make" in Path(tmp_path, "report-error.txt").read_text()


def test_a_page_that_fails_leaves_the_data(tmp_path, capsys, monkeypatch):
    def broken():
        raise ValueError("no figure")

    monkeypatch.setattr("raytune_llm.jobs.report.page.plotly_js", broken)
    assert write_run_report(str(tmp_path), lambda: sweep_report(2)) is None
    assert Path(tmp_path, "report.json").is_file() and not Path(tmp_path, "report.html").exists()
    assert "no figure" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(tmp_path, capsys):
    Path(tmp_path, "file").write_text("")
    assert write_run_report(f"{tmp_path}/file/run", lambda: sweep_report(1)) is None
    assert "the version is published all the same" in capsys.readouterr().out
