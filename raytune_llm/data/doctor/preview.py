"""One record of each source as the model sees it, with what it learns of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from raytune_llm.data.doctor.results import Preview, Segment
from raytune_llm.data.doctor.view import View, printable
from raytune_llm.data.examples import IGNORED, Example, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_PREVIEWS = 4
"""Of a split."""
LOOKED_THROUGH = 200
"""Records of a split, evenly spread, among which one of each source is looked for."""
MOST_CHARACTERS = 1200
"""Of each segment; a longer one loses its middle."""


def previews(view: View, sources: Mapping[str, int]) -> list[Preview]:
    """The first record found of each source of a split."""
    if view.encoded is None:
        return []
    rows, found = view.encoded.rows, dict[str, Preview]()
    for index in range(0, view.total, -(-view.total // LOOKED_THROUGH) or 1):
        if len(found) == min(MOST_PREVIEWS, len(sources)):
            break
        if rows[index] >= 0:
            where = view.where(index)
            source = source_of(where, sources)
            if source not in found:
                found[source] = _preview(view, view.encoded.examples[rows[index]], source, where)
    return list(found.values())


def _preview(view: View, example: Example, source: str, where: str) -> Preview:
    assert view.tokens is not None
    sequences = {
        name: tuple(segments(sequence, view.tokens.tokenizer, apart=view.is_encoder_decoder))
        for name, sequence in example.items()
        if any(label != IGNORED for label in sequence.labels)
    }
    return Preview(view.name, printable(source), printable(where), sequences)


def source_of(where: str, sources: Iterable[str]) -> str:
    """The source that a place is in: the longest that it begins with, or else the first."""
    file = where.rpartition(":")[0] or where
    by_length = sorted(sources, key=len, reverse=True)
    of_names = (name for name in by_length if name == file)
    of_starts = (name for name in by_length if where.startswith(name) or name.endswith(f"/{file}"))
    return next(of_names, None) or next(of_starts, None) or next(iter(sources))


def segments(sequence: TokenSequence, tokenizer: PreTrainedTokenizerBase, *, apart: bool) -> Iterator[Segment]:
    """The text of a sequence in parts with and without loss; `apart`: the labels are a sequence of their own."""
    if apart:
        learned = [label for label in sequence.labels if label != IGNORED]
        yield Segment(shortened(tokenizer.decode(sequence.input_ids)), False)
        yield Segment(shortened(tokenizer.decode(learned)), True)
        return
    end, before = 0, ""
    for has_loss, labels in groupby(label != IGNORED for label in sequence.labels):
        end += len(list(labels))
        text = str(tokenizer.decode(sequence.input_ids[:end]))  # decoded from the start: parts alone may lose a space
        yield Segment(shortened(text[len(before) :]), has_loss)
        before = text


def shortened(text: str) -> str:
    """A text without its middle if it is long; printable but for its line breaks."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 2 :]}"
    return "\n".join(map(printable, text.split("\n")))
