"""The dialects of JSON that records are written in: which keys a record needs, and how each is read.

A record is one object, for example a line of JSONL; its keys determine its dialect (`DIALECTS`). The kind that it
becomes depends on what the method takes: {"input_text", "output_text", "rationale"} is a Rationale for one method, a
Supervised for another. Which dialect a record is in is decided in raytune_llm/data/dialects/parsing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from raytune_llm.data.dialects.preferences import (
    answer_turns,
    candidates,
    chosen_rejected,
    gemini_turns,
    implicit_prompt,
    openai_preference,
    prompt_turns,
    side,
    vertex_preference,
)
from raytune_llm.data.dialects.turns import conversation, parse_turns
from raytune_llm.data.dialects.values import Row, as_text
from raytune_llm.data.records import (
    Chat,
    Message,
    PlainText,
    Preference,
    Prompt,
    Rationale,
    Record,
    RecordError,
    Supervised,
    show,
)


@dataclass(frozen=True)
class Dialect:
    """A way to write records: the keys it needs, the kinds it can give, and its reader."""

    needs: tuple[str, ...]
    kinds: tuple[type, ...]
    read: Callable[[Row], Record]
    also: tuple[str, ...] = ()
    """Keys that it reads where they are present."""
    unless: tuple[str, ...] = ()
    """Keys with which a record is in another dialect."""
    alone: bool = False
    """Whether records have no other keys, unless data.columns names this dialect's."""


def _chat(turns: tuple[Message, ...], key: str) -> Chat:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        found = f"no assistant turn (roles: {', '.join(dict.fromkeys(turn.role for turn in turns))})"
        raise RecordError(key, found, "at least one assistant turn: there is no completion")
    if not any(turn.learn for turn in answers):
        found = "only assistant turns with weight 0 or train false"
        raise RecordError(key, found, "at least one that is learned: nothing would be")
    return Chat(turns)


def _messages(row: Row, key: str) -> tuple[Message, ...]:
    return conversation(row, parse_turns(row, row[key], key), key)


def _check_label(row: Row) -> None:
    """Refuse an unpaired preference (KTO) for an answer that isn't wanted, however its label is written."""
    label = row.values.get("label")
    word = str(label).strip().lower()
    if word in UNWANTED:
        remedy = "remove the record, or, where label means something else, data.ignore=[label]"
        expected = f"true: an answer that is not wanted can't be learned from by itself; {remedy}"
        raise RecordError("label", show(label), expected)
    if label is not None and word not in WANTED:
        row.unused.append("label")


def _supervised(row: Row) -> Supervised:
    _check_label(row)
    return Supervised(*row.texts(*NATIVE))


def _prompt_completion(row: Row) -> Supervised | Chat:
    """Plain, or conversational: then only the completion's turns are learned."""
    _check_label(row)
    is_plain = not isinstance(row["prompt"], list) and not isinstance(row["completion"], list)
    if is_plain and row.get("system") is row.get("tools") is None:
        return Supervised(*row.texts("prompt", "completion"))
    prompt = tuple(replace(turn, learn=turn.role != "assistant") for turn in side(row, "prompt", "user"))
    answer = answer_turns(side(row, "completion", "assistant"), "completion")
    return _chat(conversation(row, prompt, "prompt") + answer, "completion")


def _instruction(row: Row) -> Supervised | Chat:
    """Instruction and input (which may be empty) make the prompt, a line break between them; a chat where there are
    earlier turns (history) or a system prompt."""
    prompt = row.text("instruction")
    given = row.values.get("input")
    if given is not None and not (isinstance(given, str) and given.strip() == ""):
        prompt = f"{prompt}\n{row.text('input')}"
    completion = row.text("output")
    if row.get("history") is row.get("system") is None:
        return Supervised(prompt, completion)
    earlier = []
    pairs = row.get("history") or []
    if not isinstance(pairs, list):
        raise RecordError("history", show(pairs), 'a list of pairs, [["question", "answer"], …]')
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError(f"history[{i}]", show(pair), 'a pair, ["question", "answer"]')
        for place, (role, words) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            at = f"history[{i}][{place}]"
            if not isinstance(words, str):
                raise RecordError(at, show(words), "a string that is not empty")
            earlier.append(Message(role, as_text(words, at, "a string that is not empty")))
    turns = (*earlier, Message("user", prompt), Message("assistant", completion))
    return Chat(conversation(row, turns, "history"))


def _rationale(row: Row) -> Rationale:
    label, rationale = (row.text(key) if key in row else None for key in ("output_text", "rationale"))
    return Rationale(row.text("input_text"), label, rationale)


def _prompt_only(row: Row) -> Prompt:
    if not isinstance(row["prompt"], list) and row.get("system") is row.get("tools") is None:
        return Prompt(row.text("prompt"))
    return prompt_turns(conversation(row, side(row, "prompt", "user"), "prompt"), "prompt")


NATIVE = ("input_text", "output_text")
UNWANTED = ("false", "0", "0.0", "no", "undesirable", "rejected")
"""Labels of answers that aren't wanted, as CSV and others write them."""
WANTED = ("true", "desirable", "chosen")
"""Labels that say no more than that the answer is wanted."""
CONTEXT = ("system", "tools")
"""Keys that stand apart from a conversation's turns."""
GEMINI_SYSTEM = ("systemInstruction", "system_instruction")
DIALECTS = (
    Dialect(NATIVE, (Supervised,), _supervised, ("label",)),
    Dialect(("prompt", "completion"), (Supervised, Chat), _prompt_completion, (*CONTEXT, "label")),
    Dialect(("instruction", "output"), (Supervised, Chat), _instruction, ("input", "system", "history")),
    Dialect(("contents",), (Chat,), lambda row: _chat(gemini_turns(row), "contents"), GEMINI_SYSTEM, ("completions",)),
    Dialect(("messages",), (Chat,), lambda row: _chat(_messages(row, "messages"), "messages"), CONTEXT),
    Dialect(("conversations",), (Chat,), lambda row: _chat(_messages(row, "conversations"), "conversations"), CONTEXT),
    Dialect(("input_text", "candidate_0", "candidate_1", "choice"), (Preference,), candidates),
    Dialect(("prompt", "chosen", "rejected"), (Preference,), chosen_rejected, (*CONTEXT, "margin")),
    Dialect(("chosen", "rejected"), (Preference,), implicit_prompt, CONTEXT, ("prompt",)),
    Dialect(("input", "preferred_output", "non_preferred_output"), (Preference,), openai_preference),
    Dialect(("contents", "completions"), (Preference,), vertex_preference, GEMINI_SYSTEM),
    Dialect(("text",), (PlainText,), lambda row: PlainText(row.text("text")), alone=True),
    Dialect(("input_text",), (Rationale,), _rationale, ("output_text", "rationale")),
    Dialect(("input_text",), (Prompt,), lambda row: Prompt(row.text("input_text"))),
    Dialect(("prompt",), (Prompt,), _prompt_only, CONTEXT),
    Dialect(("messages",), (Prompt,), lambda row: prompt_turns(_messages(row, "messages"), "messages"), CONTEXT),
    Dialect(("contents",), (Prompt,), lambda row: prompt_turns(gemini_turns(row), "contents"), GEMINI_SYSTEM),
    Dialect(
        ("conversations",),
        (Prompt,),
        lambda row: prompt_turns(_messages(row, "conversations"), "conversations"),
        CONTEXT,
    ),
)
"""Of the dialects that a record has all keys of, the first of the first kind that the method takes."""
