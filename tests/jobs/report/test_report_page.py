"""The page and its figures, without a browser: complete, valid, safe, and useful when there is little to show."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import plotly.graph_objects as go
import pytest
from PIL import Image
from report_world import MARKUP, compared, sweep_report, trial

from raytune_llm.jobs.report import page
from raytune_llm.jobs.report.figures import figures_of
from raytune_llm.jobs.report.png import render_png

COLOUR = re.compile(r"var\(--([\w-]+)\)")


class Outline(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", {}))


@pytest.fixture(scope="module")
def hostile():
    return page.render(sweep_report(9, text=MARKUP))


def lone(ended="complete"):
    one = trial(0, ended=ended)
    return replace(
        sweep_report(1), command="train", trials=[one], winner=one.id, knobs=(), leaderboard=(), sections=(), amounts=()
    )


def with_failures():
    nothing = {"points": [], "spans": [], "best": None, "best_step": None}
    failed = [replace(trial(place, ended="failed: no memory"), **nothing) for place in (1, 2)]
    return replace(sweep_report(1), trials=[trial(0), *failed])


def diverged():
    one = trial(0, ended="diverged: x")
    points = [replace(point, metrics={"eval/loss": None}) for point in one.points]
    return replace(lone(), trials=[replace(one, best=None, best_step=None, points=points)])


def evaluation():
    nothing = {"trials": (), "winner": None, "data": None, "state": "", "lower_is_better": None}
    return replace(lone(), command="evaluate", **nothing)


def bare():
    nothing = {"compared": (), "verdicts": (), "commands": (), "costs": {}, "facts": {}}
    return replace(evaluation(), **nothing)


REPORTS = {
    "sweep": lambda: sweep_report(9),
    "train": lone,
    "all but one failed": with_failures,
    "evaluate": evaluation,
    "bare": bare,
    "no number": diverged,
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_figure_is_one_that_plotly_draws(name):
    for figure in figures_of(REPORTS[name]()):
        json.dumps(list(figure.variants.values()), allow_nan=False)
        for variant in figure.variants.values():
            text = COLOUR.sub("#123456", json.dumps(variant))
            go.Figure(json.loads(text))
        assert set(COLOUR.findall(json.dumps(list(figure.variants.values())))) <= set(page.tokens()[0])
        assert figure.rows and all(len(row) == len(figure.columns) for row in figure.rows), figure.id


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_makes_a_page_and_a_picture(name):
    report = REPORTS[name]()
    found = page.render(report)
    assert report.version in found and found.rstrip().endswith("</html>")
    if report.trials or report.compared:
        picture = Image.open(BytesIO(render_png(report)))
        assert picture.size[0] >= 1000


def test_a_sweep_has_all_figures_and_others_what_they_can():
    found = {name: [figure.id for figure in figures_of(REPORTS[name]())] for name in REPORTS}
    assert found["sweep"] == ["intervals-0", "curves", "coordinates", "importance", "costs", "timeline"]
    assert found["train"] == ["intervals-0", "curves"] and found["evaluate"] == ["intervals-0"]
    assert found["all but one failed"] == ["intervals-0", "curves", "timeline"] and found["bare"] == []


def test_early_ends_are_marked_and_the_winner_is_drawn_last():
    report = sweep_report(9)
    curves = next(figure for figure in figures_of(report) if figure.id == "curves")
    assert list(curves.variants)[:3] == ["eval/loss", "train/loss", "eval/token_accuracy"]
    names = [trace["name"] for trace in curves.variants["eval/loss"]["data"]]
    assert names.count("other trials") == 8 and names[-2:] == ["winner", "its published step"]
    assert "stopped by the scheduler" in names
    assert curves.rows[0][-1] == "complete" and "time/seconds" not in curves.variants


def test_no_text_becomes_markup(hostile):
    outline = Outline(hostile)
    scripts = [attributes for attributes, _ in outline.scripts]
    assert scripts == [{"type": "application/json", "id": "specs"}, {}, {}]
    assert not [tag for tag, _ in outline.elements if tag in ("img", "iframe", "object", "form", "base")]
    assert "</script><img" not in hostile and "&lt;/script&gt;" in hostile
    specs = json.loads(outline.scripts[0][1])
    assert set(specs) == {"intervals-0", "curves", "coordinates", "importance", "costs", "timeline"}


def test_only_the_pages_own_scripts_may_run_and_nothing_is_asked_for(hostile):
    outline = Outline(hostile)
    [policy] = [a["content"] for tag, a in outline.elements if tag == "meta" and "http-equiv" in a]
    for _, script in outline.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src" not in policy and "script-src 'unsafe-inline'" not in policy
    addresses = [a.get("src") or a.get("href") for tag, a in outline.elements if tag in ("link", "script", "a", "use")]
    assert all(address is None or address.startswith(("#", "data:")) for address in addresses)


def test_links_lead_somewhere_and_ids_are_unique(hostile):
    outline = Outline(hostile)
    links = {a["href"][1:] for tag, a in outline.elements if tag == "a"}
    assert links <= set(outline.ids) and len(outline.ids) == len(set(outline.ids))
    assert sum(tag == "table" for tag, _ in outline.elements) == sum(tag == "caption" for tag, _ in outline.elements)


def test_the_readers_choice_of_colours_outranks_the_systems():
    light, dark = page.tokens()
    assert light.keys() == dark.keys() and {"bar", "muted", "back"} <= light.keys()
    style = page.theme()
    assert style.index("prefers-color-scheme") < style.index("[data-theme=light]")


def test_a_large_sweep_makes_a_page_that_can_be_sent():
    report = sweep_report(200, num_reports=150)
    found = page.render(report)
    assert len(found.encode()) < 8_000_000
    assert "All 200 rows" in found


def test_a_mark_on_a_row_has_a_column():
    report = sweep_report(9)
    first, *others = report.leaderboard
    columns, rows = page.leaderboard(replace(report, leaderboard=[replace(first, marks=("Pareto",)), *others]))
    assert columns[-1] == "mark" and rows[0][-1] == "Pareto" and rows[1][-1] == ""
    assert page.leaderboard(report)[0][-1] == "ended"


def test_tables_of_a_comparison_are_shown():
    found = page.render(replace(lone(), compared=[compared()]))
    assert "Judged by others" in found and "Precision, recall and F1" in found
