"""The text and counts of a report."""

import ast
from pathlib import Path

import raytune_llm.annotation
from raytune_llm.annotation.filters import Selection
from raytune_llm.annotation.report import AnnotationReport, Progress
from raytune_llm.annotation.teachers.base import Request, Response
from raytune_llm.data.records import Rationale

LABELLED, OPEN = Rationale("q", "yes", None), Rationale("q", None, None)
ORIGIN = {"teacher": "big"}


def test_every_record_is_counted_once():
    report = AnnotationReport()
    report.skip(Rationale("s", "yes", "known"))
    report.add(LABELLED, Selection(Rationale("q", "yes", "because"), None, "Yes."), ORIGIN, num_cut=0)
    report.add(LABELLED, Selection(LABELLED, "contradicts the given label", "no"), ORIGIN, num_cut=1)
    report.add(OPEN, Selection(None, "samples disagree", "no"), ORIGIN, num_cut=0)
    known = {
        Request("q", 0): Response("text", 10, 5, 0.25, False),
        Request("old", 0): Response("text", 1, 1, 1.0, False),
    }
    assert report.with_usage([Request("q", 0)], known).text() == (
        "records     4: 1 annotated, 1 skipped, 2 answers rejected\n"
        "            contradicts the given label: 1\n"
        "            samples disagree: 1\n"
        "written     3, 1 dropped without a label\n"
        "agreement   50.0% of 2 given labels match the teacher's\n"
        "! 1 prompts were too long for the teacher and lost their beginning; lower prompt.num_examples or "
        "annotation.max_new_tokens, or choose a teacher with a longer context\n"
        "requests    1 new, 15 tokens, 0.2500 USD"
    )
    assert [row.get("teacher") for row in report.rows] == [None, "big", None]
    assert report.lines.count("\n") == 3


def test_progress(capsys):
    progress = Progress(4)
    progress.add({Request("a", 0): Response("", 1, 1, 0.5, False)})
    assert progress.line(2.0) == "responses 1/4, 0.5/s, 6 s left, 0.5000 USD"
    assert capsys.readouterr().out == ""
    progress.add({Request("b", sample): Response("", 1, 1, 0.0, False) for sample in range(3)})
    assert capsys.readouterr().out.startswith("responses 4/4, ")


def test_only_run_imports_ray():
    folder = Path(raytune_llm.annotation.__file__).parent
    for file in folder.rglob("*.py"):
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = [f"{getattr(node, 'module', '')}.{alias.name}" for node in nodes for alias in node.names]
        uses_ray = any("ray" in name.split(".") for name in names)
        assert uses_ray == (file.name == "run.py"), file
