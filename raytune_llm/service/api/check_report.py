"""What a data check found, as the page shows it: with the client's names of its files and without folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import PurePosixPath
from typing import Any

from raytune_llm.service.records import StoredFile
from raytune_llm.serving.api.errors import PATH

SHOWN_LABELS = 40
SHOWN_PREVIEWS = 3
SHOWN_PROBLEMS = 50
MARK = "\ue000{}\ue001"
"""Of a file, while a text is rewritten."""
PLACE = re.compile(r"^\s+(?P<where>\S.*?:\d+): (?P<text>.+)$")
"""A line of the command's error that names a record."""


def shown(report: Mapping[str, Any], files: Mapping[str, StoredFile]) -> dict[str, Any]:
    """report.json's part for the page. `files`: those that were checked, by split."""
    named = _Names(files)
    return {
        "verdict": named.text(report["verdict"]),
        "max_tokens": report["max_tokens"],
        "carved": report["carved"],
        "splits": {name: _split(facts) for name, facts in report["splits"].items()},
        "findings": [_finding(finding, named) for finding in report["findings"]],
        "notes": [named.text(note) for note in report["notes"]],
        "previews": [
            {"split": one["split"], "where": named.text(one["where"], one["split"]), "sequences": one["sequences"]}
            for one in report["previews"][:SHOWN_PREVIEWS]
        ],
    }


def findings_of_text(text: str, files: Mapping[str, StoredFile]) -> dict[str, Any]:
    """A report of what the command printed when it could not read the records: a problem for each line that it
    names."""
    named = _Names(files)
    message = text.rpartition("error: ")[2].strip() or "the file can't be used"
    lines = message.splitlines()
    places = [match for line in lines if (match := PLACE.match(line))]
    problems = [
        _problem(named.text(match["text"]), [{"where": named.text(match["where"]), "excerpt": ""}])
        for match in places[:SHOWN_PROBLEMS]
    ]
    if not problems:
        problems = [_problem(named.text(" ".join(lines)), [])]
    return {
        "verdict": f"not usable: {named.text(lines[0].rstrip(':'))}",
        "max_tokens": None,
        "carved": False,
        "splits": {},
        "findings": problems,
        "notes": [],
        "previews": [],
    }


def renamed(page: bytes, names: Mapping[str, str]) -> bytes:
    """report.html with the client's names of files in place of their locations."""
    text = page.decode()
    for location, name in names.items():
        text = text.replace(escape(location), escape(name))
    return text.encode()


def _problem(text: str, places: list[dict[str, str]]) -> dict[str, Any]:
    return {"kind": "format", "severity": "problem", "split": "", "text": text, "count": None, "places": places}


def _finding(finding: Mapping[str, Any], named: _Names) -> dict[str, Any]:
    split = finding["split"]
    places = [{"where": named.text(place["where"], split), "excerpt": place["excerpt"]} for place in finding["places"]]
    return {**finding, "text": named.text(finding["text"], split), "places": places}


def _split(facts: Mapping[str, Any]) -> dict[str, Any]:
    labels = facts["labels"] and dict(list(facts["labels"].items())[:SHOWN_LABELS])
    kept = ("num_records", "num_bytes", "kinds", "prompt_tokens", "completion_tokens", "truncation", "pairs")
    return {**{key: facts[key] for key in kept}, "labels": labels, "num_labels": len(facts["labels"] or ())}


class _Names:
    """Puts the client's names of files in place of those that they are stored under."""

    def __init__(self, files: Mapping[str, StoredFile]) -> None:
        self._files = files

    def text(self, text: str, split: str = "") -> str:
        """`split`: what the text is about, which tells files apart that are stored under the same last name."""
        # marks first, the client's names last: what a name says is not taken for a path
        files = list(self._files.values())
        for place, file in enumerate(files):
            text = _replaced(text, file.location, MARK.format(place))
        about = self._files.get(split) or (files[0] if len(files) == 1 else None)
        if about is not None:
            text = _replaced(text, PurePosixPath(about.location).name, MARK.format(files.index(about)))
        text = PATH.sub("", text)
        for place, file in enumerate(files):
            text = text.replace(MARK.format(place), file.filename)
        return text


def _replaced(text: str, name: str, by: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(name)}", by, text)
