"""The report for the terminal, as JSON and as a page."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from test_doctor import diagnosed, encode, numbered, splits, words

from raytune_llm.data.doctor.diagnosis import Diagnosis
from raytune_llm.data.doctor.facts import lengths_of
from raytune_llm.data.doctor.page import bars, render, size
from raytune_llm.data.doctor.preview import MOST_CHARACTERS, source_of
from raytune_llm.data.doctor.report import write_report
from raytune_llm.data.doctor.results import Histogram
from raytune_llm.data.encoding.encode import encode_splits
from raytune_llm.data.records import Chat, Message, Preference, Supervised

NASTY = "<script>alert(1)</script>\x1b[31m \"quoted\" & 'more'"


class Page(HTMLParser):
    """Collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag not in ("meta", "br", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def chat(*turns: str) -> Chat:
    return Chat(tuple(Message(role, text) for role, text in zip(("user", "assistant") * 9, turns, strict=False)))


def rich() -> Diagnosis:
    labels = [Supervised(f"ask {i}", "yes" if i % 9 else "no") for i in range(60)]
    return diagnosed(splits([*labels, Supervised(NASTY, "yes"), *numbered(2)], numbered(12, 70)), words())


def read(page: str) -> Page:
    found = Page()
    found.feed(page)
    found.close()
    return found


def test_the_page_is_whole_and_needs_nothing_else():
    diagnosis = rich()
    page = render(diagnosis, "my data")
    found = read(page)
    assert found.open == [] and found.links == [] and "script" not in found.tags
    assert "url(" not in page and "@import" not in page and "http" not in page
    for text in (
        "my data",
        diagnosis.verdict,
        *diagnosis.warnings,
        *diagnosis.notes,
        *(a.reason for a in diagnosis.advice),
    ):
        assert text[1:] in " ".join(found.text.split())
    assert {"svg", "table", "mark"} <= set(found.tags)


def test_what_data_say_is_escaped():
    page = render(rich(), NASTY)
    assert "<script>" not in page and "\x1b" not in page and "&lt;script&gt;" in page


def test_previews_mark_the_answers():
    diagnosis = diagnosed(splits([chat("1", "yes", "2", "no")]), words())
    [preview] = diagnosis.previews
    assert [(part.text.strip(), part.has_loss) for part in preview.sequences["completion"]] == [
        ("User : 1 Assistant :", False),
        ("yes </s>", True),
        ("User : 2 Assistant :", False),
        ("no </s>", True),
    ]
    text = diagnosis.text(whole=True, colour=False)
    assert "as the model sees data.train, record 1 (train); what counts as the answer is in ⟦ ⟧" in text
    assert "⟦ yes </s>⟧ User : 2 Assistant :⟦ no </s>⟧" in text
    assert "\033[32m yes </s>\033[0m" in diagnosis.text(whole=True, colour=True)
    assert "as the model sees" not in diagnosis.text()


def test_a_pair_has_two_sequences_and_long_texts_lose_their_middle():
    pair = Preference("1 " * 2000, "2", "3")
    [preview] = diagnosed(splits([pair]), words(5000)).previews
    assert list(preview.sequences) == ["chosen", "rejected"]
    assert len(preview.sequences["chosen"][0].text) == MOST_CHARACTERS + 3


@pytest.mark.parametrize(
    ("where", "source"),
    [("a.jsonl:7", "a.jsonl"), ("b/a.jsonl:7", "b/a.jsonl"), ("x.jsonl:1", "/data/x.jsonl"), ("?", "a.jsonl")],
)
def test_the_source_of_a_record(where, source):
    assert source_of(where, {"a.jsonl": 1, "b/a.jsonl": 2, "/data/x.jsonl": 3}) == source


def test_sources_are_listed_where_there_are_several(monkeypatch):
    data = splits(numbered(30))
    monkeypatch.setattr(type(data), "sources", lambda self, split: {"a.jsonl": 20, "b.jsonl": 10})
    monkeypatch.setattr(
        type(data), "where", lambda self, split, index: f"{'a' if index < 20 else 'b'}.jsonl:{index % 20 + 1}"
    )
    diagnosis = diagnosed(data, words())
    assert "                   20  from a.jsonl\n                   10  from b.jsonl" in diagnosis.text()
    assert [(one.source, one.where) for one in diagnosis.previews] == [
        ("a.jsonl", "a.jsonl:1"),
        ("b.jsonl", "b.jsonl:1"),
    ]
    assert "b.jsonl1033 %" in " ".join(read(render(diagnosis, "x")).text.split())


def test_many_sources_and_long_names():
    name = f"s3://{'bucket' * 30}/train.jsonl"
    sources = {name: 3} | {f"part-{i:03}.parquet": 15 for i in range(199)}
    diagnosis = rich()
    train = replace(
        diagnosis.splits["train"], sources=sources, labels={f"{i} {'y' * 200}": 400 - i for i in range(300)}
    )
    many = replace(diagnosis, splits={"train": train})
    text = read(render(many, name)).text
    assert "part-000.parquet15< 1 %" in text.replace("\n", "") and "160 others" in text and "260 others" in text
    assert "y" * 81 not in text and name not in "\n".join(many.text().splitlines())
    few = {name: 3, "part-000.parquet": 15}
    short = f"{name[:39]}…{name[-40:]}"
    assert short.endswith("bucket/train.jsonl") and len(short) == 80
    assert f"3  from {short}" in replace(many, splits={"train": replace(train, sources=few)}).text()
    assert short in read(render(replace(many, splits={"train": replace(train, sources=few)}), "a")).text


def test_report_files(tmp_path):
    diagnosis = rich()
    paths = write_report(diagnosis, str(tmp_path / "new"), "x")
    assert paths == (f"{tmp_path}/new/report.json", f"{tmp_path}/new/report.html")
    report = json.loads((tmp_path / "new/report.json").read_text())
    assert report["verdict"] == diagnosis.verdict
    assert [found["kind"] for found in report["findings"]] == [found.kind for found in diagnosis.findings]
    assert report["findings"][0]["severity"] in ("problem", "warning")
    assert report["splits"]["train"]["prompt_tokens"]["histogram"]["counts"]
    assert "my <b>" not in (tmp_path / "new/report.html").read_text()


def test_a_report_in_an_object_store():
    import fsspec

    json_path, page = write_report(rich(), "memory://checks/one")
    assert page == "memory://checks/one/report.html"
    assert json.loads(fsspec.filesystem("memory").cat("/checks/one/report.json"))["verdict"] == rich().verdict
    assert json_path.endswith("report.json")


def test_bars():
    drawn = bars(Histogram((4, 6, 8), (1, 3)))
    assert [(bar.title, bar.label, bar.count) for bar in drawn] == [
        ("4 to 5 tokens: 1", "4", "1"),
        ("6 to 7 tokens: 3", "6", "3"),
    ]
    assert drawn[1].height == 3 * drawn[0].height == 96
    many = bars(Histogram(tuple(range(31)), (1,) * 30))
    assert sum(bool(bar.label) for bar in many) <= 9 and max(bar.x + bar.width for bar in many) <= 320


def test_lengths_of_nothing():
    assert lengths_of([]).histogram.counts == () and lengths_of([5]).histogram == Histogram((4, 6), (1,))
    long = chat("1 " * 30, "2")
    assert "nothing is left" in render(diagnosed(splits([long]), words(4)), "x")


def test_sizes():
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 bytes", "2.0 kB", "3.0 MB", "5.0 GB"]


def test_no_colour_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[33m!\033[0m" in rich().text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in rich().text()


def test_the_report_says_the_same_twice():
    data, tokens = splits(numbered(40), numbered(40, 60)), words()
    first, second = (diagnosed(data, tokens) for _ in range(2))
    assert first == second and encode_splits(data, tokens, encode).max_tokens == first.max_tokens
