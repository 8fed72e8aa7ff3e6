"""The project's vocabulary is the field's: words that only insiders would understand are kept out of code, configs and
docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"said": "outputs, completion, message",
    r"told": "passed, reported, logged",
    r"mates?": "group members",
    r"leash": "KL penalty",
    r"beside": "next to, in addition to, extra",
    r"gone on|goes on|going on|go on": "resume, continue",
    r"thrown away|throws? away": "discarded, rejected",
    r"stands? in": "is in",
    r"speaks?": "gives, reports",
    r"companions?": "model references",
    r"ledger": "token buckets",
    r"catalogues?": "catalog",
    r"unproven|not proven": "failed the parity check, not better by more than chance",
    r"put out": "evicted",
    r"mended": "fixed",
}
NOT_OURS = ("raytune_llm/data/demo",)  # stories and conversations of the embedded demo
FOLDERS = {"raytune_llm": "*.py", "conf": "*.yaml", "docs": "*.md", "jobs": "*.py", "benchmarks": "*.py", "deploy": "*"}
FILES = [
    *(file for folder, pattern in FOLDERS.items() for file in sorted((ROOT / folder).rglob(pattern)) if file.is_file()),
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("Makefile", "cluster.yaml", "pyproject.toml")),
]
FILES = [file for file in FILES if not file.relative_to(ROOT).as_posix().startswith(NOT_OURS)]


def prose(file: Path) -> list[tuple[int, str]]:
    """Numbered lines; of Markdown without code blocks, which quote what commands and models print."""
    found, is_code = [], False
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if file.suffix == ".md" and line.startswith("```"):
            is_code = not is_code
        elif not is_code and not (file.suffix == ".md" and line.startswith("    ")):
            found.append((number, line))
    return found


@pytest.mark.parametrize("words", INSTEAD)
def test_the_vocabulary_is_the_fields(words):
    pattern = re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in FILES
        for number, line in prose(file)
        if pattern.search(line)
    ]
    assert not found, f"write {INSTEAD[words]} instead:\n" + "\n".join(found)
