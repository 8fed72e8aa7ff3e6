"""The turns of a conversation, in the forms of OpenAI, ShareGPT and Gemini.

    {"role": "user", "content": "…"}                OpenAI; content may be parts, [{"type": "text", "text": "…"}]
    {"from": "human", "value": "…"}                 ShareGPT
    {"role": "user", "parts": [{"text": "…"}]}      Gemini

An assistant turn may have tool_calls, and weight (0 or 1) or train (true or false), which say whether it carries loss.
What an assistant thought (reasoning_content, parts with thought: true) is left out: chat templates leave it out of
earlier turns, and it is not part of an answer; the row notes it. Media are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.data.dialects.tool_calls import parse_calls, parse_tools
from raytune_llm.data.dialects.values import NEUTRAL, THOUGHTS_LEFT, Row, as_text, left_out
from raytune_llm.data.records import Message, RecordError, show


@dataclass(frozen=True)
class Form:
    """A way to write a turn: the keys of its role and content, an example, and what its roles mean here."""

    role: str
    content: str
    example: str
    roles: Mapping[str, str]


OPENAI = Form(
    "role",
    "content",
    '{"role": "user", "content": "…"}',
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
    | {"model": "assistant", "tool": "tool"},
)
SHAREGPT = Form(
    "from",
    "value",
    '{"from": "human", "value": "…"}',
    {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    | {"tool": "tool", "observation": "tool"},
)
GEMINI = Form(
    "role",
    "parts",
    '{"role": "user", "parts": [{"text": "…"}]}',
    {"system": "system", "user": "user", "assistant": "assistant", "model": "assistant"},
)

WRITTEN_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
THOUGHTS = (*WRITTEN_THOUGHTS, "thoughtSignature")
"""What an assistant thought, by key of a turn or of a part."""
ASSISTANT_KEYS = ("tool_calls", "weight", "train", *THOUGHTS)
TOOL_KEYS = ("tool_call_id", "name")


def parse_turns(
    row: Row, value: object, key: str, form: Form = OPENAI, *, is_answer: bool = False
) -> tuple[Message, ...]:
    """The turns of a list found at `key`; one whose first turn has `from` is in ShareGPT's form. Only an answer may
    begin with an assistant turn.

    Raises:
        RecordError: one is no turn, or a turn of its role can't be in its place.
    """
    if form is OPENAI and isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        form = SHAREGPT
    if not isinstance(value, list) or not value:
        raise RecordError(key, show(value), f"a list of turns, [{form.example}, …]")
    turns = tuple([parse_turn(row, item, f"{key}[{i}]", form) for i, item in enumerate(value)])
    if turns[0].role == "assistant" and not is_answer:
        expected = "a user turn, or a system turn, first: an answer needs a prompt; remove the turn"
        raise RecordError(f"{key}[0].{form.role}", "an assistant turn", expected)
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise RecordError(f"{key}[{i}].{form.role}", "a system turn", "the system turn first, and only one")
        if turn.role == "tool" and (i == 0 or turns[i - 1].role not in ("assistant", "tool")):
            expected = "a tool's result only after an assistant turn, or after another result"
            raise RecordError(f"{key}[{i}].{form.role}", "a tool turn", expected)
    return turns


def conversation(row: Row, turns: tuple[Message, ...], key: str) -> tuple[Message, ...]:
    """The turns with the row's `system` before them and its `tools` on the first.

    Raises:
        RecordError: there are two system prompts.
    """
    if row.get("system") is not None:
        if turns[0].role == "system":
            raise RecordError("system", "a system prompt", f"only one: {key}[0] is a system turn already")
        turns = (Message("system", row.text("system")), *turns)
    if (tools := row.get("tools")) is not None:
        turns = (replace(turns[0], tools=parse_tools(tools, "tools")), *turns[1:])
    return turns


def parse_turn(row: Row, item: object, at: str, form: Form) -> Message:
    """The turn found at `at`. Raises RecordError where it is none."""
    if not isinstance(item, dict):
        raise RecordError(at, show(item), f"a turn, {form.example}")
    name = item.get(form.role)
    role = form.roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise RecordError(f"{at}.{form.role}", show(name), f"one of {', '.join(form.roles)}")
    content = item.get(form.content)
    if len(item) == 2 and isinstance(content, str) and form is not GEMINI:
        return Message(role, as_text(content, f"{at}.{form.content}", _filled(role)))
    present = row.present(item)
    if role != "assistant":
        text = _content(row, content, f"{at}.{form.content}", form, role)
        optional = TOOL_KEYS if role == "tool" else ()
        _refuse_learning(present, at)
        row.leave(present, (form.role, form.content, *optional), at)
        if role != "tool":
            return Message(role, text)
        call_id, name = (_optional_text(present, key, at) for key in TOOL_KEYS)
        return Message(role, text, call_id=call_id, name=name)
    calls = parse_calls(row, present["tool_calls"], f"{at}.tool_calls") if present.get("tool_calls") else None
    row.leave(present, (form.role, form.content, *ASSISTANT_KEYS), at)
    _note_thoughts(row, present)
    is_empty = calls is not None and content in (None, "", [])
    if content in (None, "", []) and not is_empty and item.get("tool_calls") and "tool_calls" in row.ignore:
        expected = "text; remove the record, or leave tool_calls in"
        raise RecordError(f"{at}.{form.content}", "nothing but tool_calls, which data.ignore leaves out", expected)
    text = "" if is_empty else _content(row, content, f"{at}.{form.content}", form, role)
    return Message(role, text, tool_calls=calls, learn=_learn(present, at))


def _filled(role: str) -> str:
    return "a string that is not empty" + (": the turn has no completion" if role == "assistant" else "")


def _content(row: Row, content: object, at: str, form: Form, role: str) -> str:
    """The text of a turn's content, which may be text parts."""
    if form is GEMINI or isinstance(content, list):
        return parse_parts(row, content, at)
    if not isinstance(content, str):
        raise RecordError(at, show(content), _filled(role))
    return as_text(content, at, _filled(role))


def parse_parts(row: Row, value: object, at: str) -> str:
    """The text of [{"text": …}, …], joined; thoughts and parts of which everything is left out have none.

    Raises:
        RecordError: a part has no text, or none is left of them all.
    """
    if not isinstance(value, list) or not value:
        raise RecordError(at, show(value), 'a list of parts, [{"text": "…"}]')
    texts = [text for i, part in enumerate(value) if (text := _part(row, part, f"{at}[{i}]")) is not None]
    if not texts:
        raise RecordError(at, "only thoughts, or parts that data.ignore leaves out", "a part with text")
    return as_text("".join(texts), at, "a part with text")


def _part(row: Row, part: object, at: str) -> str | None:
    """The text of a part, None where it is a thought or left out."""
    if not isinstance(part, dict):
        raise RecordError(at, show(part), 'a text part, {"text": "…"}')
    present = row.present(part)
    others = [key for key in present if key not in ("type", "text", *THOUGHTS)]
    if not isinstance(present.get("thought", False), bool):
        raise RecordError(f"{at}.thought", show(present["thought"]), f"true or false; {left_out('thought')}")
    if present.get("thought") is True or present.get("type") in ("thinking", "reasoning"):
        row.unused.append(THOUGHTS_LEFT)
        return None
    text = present.get("text")
    if isinstance(text, str):
        _note_thoughts(row, present)
        row.leave(present, ("type", "text", *THOUGHTS), at)
        return text
    if text is not None:
        raise RecordError(f"{at}.text", show(text), "a string")
    if not others and not row.ignore.isdisjoint(part):
        return None
    remedy = f"; {left_out(others[0])}" if others else ""
    raise RecordError(at, show(part), f'a text part, {{"text": "…"}}; no other media are read{remedy}')


def _note_thoughts(row: Row, present: Mapping[str, Any]) -> None:
    """Note in the row that a turn, or a part of one, has thoughts which are left out."""
    if any(isinstance(present.get(key), str | list) and present[key] not in NEUTRAL for key in WRITTEN_THOUGHTS):
        row.unused.append(THOUGHTS_LEFT)


def _learn(present: Mapping[str, Any], at: str) -> bool:
    """Whether a turn carries loss, by OpenAI's weight or Axolotl's train."""
    weight, train = present.get("weight", 1), present.get("train", True)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise RecordError(f"{at}.weight", show(weight), f"0 (not learned) or 1 (learned); {left_out('weight')}")
    if not isinstance(train, bool):
        raise RecordError(f"{at}.train", show(train), f"true or false; {left_out('train')}")
    return bool(weight) and train


def _refuse_learning(present: dict[str, Any], at: str) -> None:
    """Take weight 0 and train false from a turn that is no answer, which is not learned from anyway.

    Raises:
        RecordError: the turn is to be learned.
    """
    for key, nothing in (("weight", 0), ("train", False)):
        if key in present and present.pop(key) != nothing:
            expected = f"{show(nothing).removeprefix('the number ')}: only assistant turns are learned"
            raise RecordError(f"{at}.{key}", "a turn to learn", f"{expected}; {left_out(key)}")


def _optional_text(present: Mapping[str, Any], key: str, at: str) -> str | None:
    value = present.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(f"{at}.{key}", show(value), "a string")
    return as_text(value, f"{at}.{key}", "a string that is not empty")
