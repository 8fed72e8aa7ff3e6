"""What a text holds that nobody meant to write: invisible and control characters, wrongly decoded letters, HTML
entities, control tokens of the base. Leaves out spelling, and whether a text is true."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ftfy
from ftfy.badness import is_bad

from raytune_llm.data.doctor.view import Check, Hits, Seen, View
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.records import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOW_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
HIGH_CONTROL = re.compile("[\x80-\x9f]")
CONTROL = re.compile(f"{LOW_CONTROL.pattern}|{HIGH_CONTROL.pattern}")
WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
"""What windows-1252 has in the place of high control characters: mostly quotes and dashes."""
INVISIBLE = re.compile(
    "[\xad\u061c\u180e\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]"
    "|(?:^|(?<=[\x00-\x7f]))[\u200c\u200d]"  # joiners are right inside emoji and in Persian or Indic words
)
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,24});")
MOST_TOKENS = 3
"""Control tokens that a finding names."""


class Texts(Check):
    """Counts records by what is wrong in any of their texts."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._hits = {kind: Hits() for kind in (*SENTENCES, "mojibake")}
        self._tokens = ControlTokens(view)

    def see(self, seen: Seen) -> None:
        text = seen.text
        if not text.replace("\n", "").isprintable():
            self._match("control_characters", LOW_CONTROL, seen)
            self._match("invisible_characters", INVISIBLE, seen)
        if "&" in text:
            self._match("html_entities", ENTITY, seen)
        if not text.isascii():
            if (at := text.find("\ufffd")) >= 0:
                self._hits["replacement_character"].add(seen.index, text, at=at)
            control = HIGH_CONTROL.search(text)
            is_letters = (control or seen.index % self._view.stride == 0) and is_mojibake(text)
            if is_letters and seen.index % self._view.stride == 0:
                self._hits["mojibake"].add(seen.index, text, at=_bad_at(text))
            elif control and not is_letters:
                self._hits["high_control_characters"].add(seen.index, text, at=control.start())
        self._tokens.see(seen)
        self._see_answer(seen)

    def merge(self, later: Texts) -> None:
        for kind, hits in self._hits.items():
            hits.merge(later._hits[kind])
        self._tokens.merge(later._tokens)

    def _match(self, kind: str, pattern: re.Pattern[str], seen: Seen) -> None:
        if found := pattern.search(seen.text):
            self._hits[kind].add(seen.index, seen.text, at=found.start())

    def _see_answer(self, seen: Seen) -> None:
        answer = seen.answer
        if isinstance(seen.record, Chat):
            if seen.record.messages[-1].role == "user":
                self._hits["unanswered_turn"].add(seen.index, seen.record.messages[-1].content or "")
        elif answer is not None and answer != answer.strip():
            self._hits["padded_answer"].add(seen.index, answer, at=0)

    def findings(self) -> Iterable[Finding]:
        view = self._view
        for kind, sentence in SENTENCES.items():
            if (hits := self._hits[kind]).count:
                text = sentence.format(name=view.name, records=_records(hits.count))
                yield Finding(kind, Severity.warning, view.name, text, hits.count, hits.places(view))
        if (hits := self._hits["mojibake"]).count:
            text = (
                f"{view.name}: {_records(hits.count)}{view.of_sample} wrongly decoded letters such as Ã© for é: "
                "read the source as UTF-8, or run ftfy.fix_text over it"
            )
            yield Finding("mojibake", Severity.warning, view.name, text, hits.count, hits.places(view))
        yield from self._tokens.findings()


SENTENCES = {
    "control_characters": "{name}: {records} control characters (NUL, escape sequences …): remove them",
    "high_control_characters": "{name}: {records} control characters from \\x80 to \\x9f: remove them or, where they "
    "stand for quotes and dashes, read the source as windows-1252",
    "invisible_characters": "{name}: {records} characters that don't show (zero-width, BOM, soft hyphen, direction "
    "marks): to a model they are other words; remove them",
    "replacement_character": "{name}: {records} a replacement character (�), a sign of a wrong encoding: read the "
    "source again as what it is encoded in",
    "html_entities": "{name}: {records} HTML entities such as &amp; where people write &: unescape them "
    "(html.unescape)",
    "padded_answer": "{name}: {records} an answer with leading or trailing whitespace, which would be learned too: "
    "strip it",
    "unanswered_turn": "{name}: {records} a last turn by the user, which is not learned from",
}
"""What to write of each kind, in the order of the report."""


class ControlTokens(Check):
    """Finds the base's special tokens, written out in texts."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        tokenizer = None if view.tokens is None else view.tokens.tokenizer
        self._names = [] if tokenizer is None else special_tokens(tokenizer)
        self._firsts = sorted({name[0] for name in self._names})
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or "(?!)")
        self._hits, self._found = Hits(), Counter[str]()

    def see(self, seen: Seen) -> None:
        text = seen.text
        if any(first in text for first in self._firsts) and (found := self._pattern.search(text)):
            self._found.update(dict.fromkeys(self._pattern.findall(text), 1))
            self._hits.add(seen.index, text, at=found.start())

    def merge(self, later: ControlTokens) -> None:
        self._found.update(later._found)
        self._hits.merge(later._hits)

    def findings(self) -> Iterable[Finding]:
        if not self._hits.count:
            return
        view, names = self._view, [name for name, _ in self._found.most_common()]
        more = " …" if len(names) > MOST_TOKENS else ""
        yield Finding(
            "control_tokens",
            Severity.warning,
            view.name,
            f"{view.name}: {_records(self._hits.count)} control tokens of the base written out in a text "
            f"({', '.join(names[:MOST_TOKENS])}{more}): they become the real ones, which can forge turns and end "
            "answers early; remove or rewrite them",
            self._hits.count,
            self._hits.places(view),
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer takes for control tokens wherever they occur."""
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(name for name in found if name.strip())


def is_mojibake(text: str) -> bool:
    """Whether ftfy finds letters that were decoded with a wrong encoding; lone control characters are none."""
    return bool(is_bad(text)) and ftfy.fix_encoding(text) not in (text, text.translate(WINDOWS))


def _bad_at(text: str) -> int:
    """The first character that ftfy would change."""
    fixed = ftfy.fix_encoding(text)
    return next((i for i, (a, b) in enumerate(zip(text, fixed, strict=False)) if a != b), 0)


def _records(count: int) -> str:
    return f"{many(count, 'record')} {'has' if count == 1 else 'have'}"
