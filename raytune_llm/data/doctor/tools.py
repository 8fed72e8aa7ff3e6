"""Calls of tools that nothing declares, results whose id answers no call, and calls that no result answers.

Where neither calls nor results have ids, results answer the calls in their order. Leaves out whether arguments fit the
tool's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache

from raytune_llm.data.dialects.tool_calls import names_of
from raytune_llm.data.doctor.view import Check, Hits, Seen, View
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.records import Chat, Message, Preference, Prompt, Record

SENTENCES = {
    "calls_without_tools": "{name}: {records} calls of tools, but no tools, so that the model learns to call functions "
    "that it doesn't know: add tools to the record",
    "undeclared_calls": "{name}: {records} a call of a function that its tools don't declare: add it to them, or "
    "correct the name",
    "unknown_results": "{name}: {records} a tool's result whose tool_call_id answers no call of the turn before: "
    "correct the id",
    "unanswered_calls": "{name}: {records} a call that no tool turn answers, though turns follow it: add its result",
}
"""What to write of each kind, in the order of the report."""


class ToolCalls(Check):
    """Counts conversations by what doesn't fit in their tools, calls and results."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._hits = {kind: Hits() for kind in SENTENCES}

    def see(self, seen: Seen) -> None:
        first = dict[str, str]()
        for turns in conversations(seen.record):
            for kind, what in misfits(turns):
                first.setdefault(kind, what)
        for kind, what in first.items():
            self._hits[kind].add(seen.index, what)

    def merge(self, later: ToolCalls) -> None:
        for kind, hits in self._hits.items():
            hits.merge(later._hits[kind])

    def findings(self) -> Iterator[Finding]:
        view = self._view
        for kind, sentence in SENTENCES.items():
            if (hits := self._hits[kind]).count:
                records = f"{many(hits.count, 'record')} {'has' if hits.count == 1 else 'have'}"
                text = sentence.format(name=view.name, records=records)
                yield Finding(kind, Severity.warning, view.name, text, hits.count, hits.places(view))


def conversations(record: Record) -> Iterator[tuple[Message, ...]]:
    """The conversations of a record: one, or with each of two answers."""
    match record:
        case Chat():
            yield record.messages
        case Prompt(tuple(turns)):
            yield turns
        case Preference(tuple(prompt), tuple(chosen), tuple(rejected)):
            yield from (prompt + chosen, prompt + rejected)


def misfits(turns: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Kinds of SENTENCES, each with the name or id that it is about."""
    declared = None if turns[0].tools is None else _names(turns[0].tools)
    for i, turn in enumerate(turns):
        if turn.tool_calls is None:
            continue
        calls = [(call.get("id"), call["function"]["name"]) for call in json.loads(turn.tool_calls)]
        for _, name in calls:
            if declared is None:
                yield "calls_without_tools", name
            elif name not in declared:
                yield "undeclared_calls", name
        after = next((j for j in range(i + 1, len(turns)) if turns[j].role != "tool"), len(turns))
        yield from _results(
            calls, [result.call_id for result in turns[i + 1 : after]], has_followers=i + 1 < len(turns)
        )


def _results(
    calls: Sequence[tuple[str | None, str]], results: Sequence[str | None], *, has_followers: bool
) -> Iterator[tuple[str, str]]:
    """Results without a call, and calls without a result, of one turn: by id, those without one in their order."""
    ids = {identity for identity, _ in calls if identity is not None}
    if ids:
        yield from (("unknown_results", given) for given in results if given is not None and given not in ids)
    answered = {given for given in results if given in ids}
    rest = [name for identity, name in calls if identity not in answered]
    num_others = sum(given is None or not ids for given in results)
    if has_followers:
        yield from (("unanswered_calls", name) for name in rest[num_others:])


@lru_cache(maxsize=256)
def _names(tools: str) -> frozenset[str]:
    return frozenset(names_of(tools))
