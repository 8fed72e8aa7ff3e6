"""The project's vocabulary is the field's: words that only insiders would understand are kept out of code, tests,
configs and docs. What the docs refer to exists.
"""

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
NOT_OURS = (
    "raytune_llm/data/demo",  # stories and conversations of the embedded demo
    "tests/data/demo",  # quotes them
    "tests/stores/fixtures",  # written by earlier releases
    "tests/test_words.py",
)
FOLDERS = {
    "raytune_llm": "*.py",
    "conf": "*.yaml",
    "docs": "*.md",
    "jobs": "*.py",
    "benchmarks": "*.py",
    "deploy": "*.py",
    "tests": "*.py",
}
FILES = [
    *(file for folder, pattern in FOLDERS.items() for file in sorted((ROOT / folder).rglob(pattern)) if file.is_file()),
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("Makefile", "cluster.yaml", "pyproject.toml")),
]
FILES = [file for file in FILES if not file.relative_to(ROOT).as_posix().startswith(NOT_OURS)]
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PATH = re.compile(r"(?<![\w./~$:-])(?:raytune_llm|benchmarks|tests|conf|jobs|docs|deploy)/[\w./*…<>{}-]*")
PLACEHOLDER = re.compile(r"[*…<>{}]|\b(?!README\b)[A-Z][A-Z_]+\b")
TO_BE_ADDED = ("focal", "brevity", "shared_gpu", "text")  # the files of CONTRIBUTING's examples


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


def exists(path: str) -> bool:
    """In the project, or as docs/architecture.md abbreviates it: in the package."""
    return (ROOT / path).exists() or (ROOT / "raytune_llm" / path).exists()


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_paths_that_docs_mention_exist(file):
    missing = [
        f"{file.relative_to(ROOT)}:{number}: {path}"
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        for path in (found.rstrip(".-") for found in PATH.findall(line))
        if not PLACEHOLDER.search(path)
        and not (file.name == "CONTRIBUTING.md" and Path(path).stem in TO_BE_ADDED)
        and not exists(path)
    ]
    assert not missing, "no such file or folder:\n" + "\n".join(missing)


def test_the_readme_has_no_placeholder_left():
    assert not re.findall(r"@[A-Z_]+@", (ROOT / "README.md").read_text())
