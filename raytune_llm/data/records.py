"""The record kinds, and the dialects of JSON they are written in.

A record is one object of a JSONL file. Its keys determine its dialect (`DIALECTS`); the kind it becomes depends on
what the method takes: {"input_text", "output_text", "rationale"} is a Rationale for one method, a Supervised
for another. Keys that no dialect needs are ignored, and so is a key whose value is null. Media and tools are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "model": "assistant"}
"""Accepted role names, and what they mean here."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


Text = str | tuple[Message, ...]
"""Plain text, or turns of a conversation."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """A prompt and the completion to learn."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with at least one assistant turn; a system turn, if any, comes first."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two different answers to one prompt, one of them preferred; all three plain, or all three conversational."""

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True, slots=True)
class Rationale:
    """A prompt with, where known, its label and the reasoning that leads there; None where a teacher is to write it."""

    prompt: str
    label: str | None
    rationale: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without an answer, for the policy to complete; a conversation ends in a user turn."""

    prompt: Text


Record = Supervised | Chat | Preference | Rationale | Prompt


class RecordError(ValueError):
    """One key of one record is missing or has a wrong value."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: found {found}, expected {expected}")
        self.key, self.found, self.expected = key, found, expected


@dataclass(frozen=True)
class Dialect:
    """A way to write records: the keys it needs, the kinds it can give, and its reader for one wanted kind."""

    needs: tuple[str, ...]
    kinds: tuple[type, ...]
    read: Callable[[Row], Record]


def parse(raw: object, kinds: Sequence[type]) -> Record:
    """The record in `raw`, of the first of `kinds` that it has all the keys for.

    Raises:
        RecordError: with the key at fault, what was found and what was expected. One that has more keys of another of
            `kinds` lacks the rest of them: a prompt with one candidate is no Prompt record.
    """
    if not isinstance(raw, dict):
        raise RecordError("record", show(raw), "a JSON object")
    row = {key: value for key, value in raw.items() if value is not None}
    wanted = [dialect for dialect in DIALECTS if set(dialect.kinds) & set(kinds)]
    largest = max(wanted, key=lambda dialect: (len(row.keys() & set(dialect.needs)), -len(dialect.needs)))
    if not row.keys() >= set(largest.needs):
        raise _misfit(raw, row, kinds)
    dialect = next(d for kind in kinds for d in wanted if kind in d.kinds and row.keys() >= set(d.needs))
    record = dialect.read(row)
    if type(record) not in kinds:
        raise RecordError("record", f"a {type(record).__name__} record", _wanted(kinds))
    return record


def _misfit(raw: Row, row: Row, kinds: Sequence[type]) -> RecordError:
    """Why no wanted dialect matches: a key is missing, the record is of another kind, or no key is known."""

    def num_present(dialect: Dialect) -> int:
        return len(row.keys() & set(dialect.needs))

    whole = [dialect for dialect in DIALECTS if row.keys() >= set(dialect.needs)]
    other = max(whole, key=num_present, default=None)
    near = max((d for d in DIALECTS if set(d.kinds) & set(kinds)), key=num_present)
    keys = ", ".join(map(repr, raw)) or "none"
    if num_present(near) and (other is None or num_present(other) <= num_present(near)):
        missing = next(key for key in near.needs if key not in row)
        found = "null" if missing in raw else f"no such key among {keys}"
        kind = next(kind for kind in kinds if kind in near.kinds).__name__
        return RecordError(missing, found, f"{EXPECTED.get(missing, 'a list of turns')}, for a {kind} record")
    if other is not None:
        return RecordError("record", f"a {other.kinds[0].__name__} record with keys {keys}", _wanted(kinds))
    return RecordError("keys", keys, _wanted(kinds))


def _wanted(kinds: Sequence[type]) -> str:
    """Every accepted dialect of the kinds, in words."""
    parts = []
    for kind in kinds:
        needs = dict.fromkeys("+".join(d.needs) for d in DIALECTS if kind in d.kinds)
        parts.append(f"a {kind.__name__} record ({' or '.join(needs)})")
    return " or ".join(parts)


def _text(row: Row, key: str) -> str:
    """A string that is more than whitespace."""
    value = row[key]
    if isinstance(value, str) and value.strip():
        return value
    remedy = "a string; put it in quotes" if isinstance(value, int | float) else EXPECTED.get(key, "a string")
    raise RecordError(key, show(value), remedy)


def _texts(row: Row, *keys: str) -> list[str]:
    return [_text(row, key) for key in keys]


def _parts(value: object, key: str) -> str:
    """The text of [{"text": …}, …], joined."""
    if not isinstance(value, list) or not value:
        raise RecordError(key, show(value), 'a list of parts, [{"text": "…"}]')
    for i, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RecordError(f"{key}[{i}]", show(part), 'a text part, {"text": "…"}; no other media are read')
    return "".join(part["text"] for part in value)


FORMS = {"content": '{"role": "user", "content": "…"}', "parts": '{"role": "user", "parts": [{"text": "…"}]}'}


def _turns(value: object, key: str, holder: str = "content") -> tuple[Message, ...]:
    """The conversation in [{"role": …, holder: text or text parts}, …]; the system turn first."""
    if not isinstance(value, list) or not value:
        raise RecordError(key, show(value), f"a list of turns, [{FORMS[holder]}, …]")
    turns = []
    for i, item in enumerate(value):
        here = f"{key}[{i}]"
        if not isinstance(item, dict):
            raise RecordError(here, show(item), f"a turn, {FORMS[holder]}")
        role, content = item.get("role"), item.get(holder)
        if not isinstance(role, str) or role not in ROLES:
            raise RecordError(f"{here}.role", show(role), f"one of {', '.join(ROLES)}")
        if ROLES[role] == "system" and i > 0:
            raise RecordError(f"{here}.role", "a system turn", "the system turn first, and only one")
        text = _parts(content, f"{here}.{holder}") if holder == "parts" or isinstance(content, list) else content
        if not isinstance(text, str) or not text.strip():
            lack = ": the turn has no completion" if ROLES[role] == "assistant" else ""
            raise RecordError(f"{here}.{holder}", show(text), f"a string that is not empty{lack}")
        turns.append(Message(ROLES[role], text))
    return tuple(turns)


def _contents(row: Row) -> tuple[Message, ...]:
    """Gemini's form: contents with role and parts, the system prompt apart."""
    turns = _turns(row["contents"], "contents", "parts")
    name = "systemInstruction" if "systemInstruction" in row else "system_instruction"
    if name not in row:
        return turns
    if turns[0].role == "system":
        raise RecordError("contents[0].role", "a system turn", f"only one: there is {name} already")
    system = row[name]
    parts = system.get("parts") if isinstance(system, dict) else [{"text": system}]
    return (Message("system", _parts(parts, f"{name}.parts")), *turns)


def _chat(turns: tuple[Message, ...], key: str) -> Chat:
    if all(turn.role != "assistant" for turn in turns):
        found = f"no assistant turn (roles: {', '.join(turn.role for turn in turns)})"
        raise RecordError(key, found, "at least one assistant turn: there is no completion")
    return Chat(turns)


def _prompt_turns(turns: tuple[Message, ...], key: str) -> Prompt:
    if turns[-1].role != "user":
        raise RecordError(key, f"a last turn by {turns[-1].role}", "a conversation that ends in a user turn")
    return Prompt(turns)


def _side(row: Row, key: str, role: str) -> tuple[Message, ...]:
    """The turns under `key`, a plain string being one turn of `role`."""
    return (Message(role, _text(row, key)),) if isinstance(row[key], str) else _turns(row[key], key)


def _prompt_completion(row: Row) -> Supervised | Chat:
    if not isinstance(row["prompt"], list) and not isinstance(row["completion"], list):
        return Supervised(*_texts(row, "prompt", "completion"))
    return Chat(_side(row, "prompt", "user") + _answer(_side(row, "completion", "assistant"), "completion"))


def _answer(turns: tuple[Message, ...], key: str) -> tuple[Message, ...]:
    if turns[0].role != "assistant" or turns[-1].role != "assistant":
        found = f"turns by {', '.join(turn.role for turn in turns)}"
        raise RecordError(key, found, "an answer, which begins and ends with an assistant turn")
    return turns


def _instruction(row: Row) -> Supervised:
    """Instruction and input (which may be empty) make the prompt, a line break between them."""
    prompt = _text(row, "instruction")
    if row.get("input", "") != "":
        prompt = f"{prompt}\n{_text(row, 'input')}"
    return Supervised(prompt, _text(row, "output"))


def _preference(prompt: Text, chosen: Text, rejected: Text, key: str) -> Preference:
    if chosen == rejected:
        raise RecordError(key, "two identical answers", "two different ones: there is nothing to prefer")
    return Preference(prompt, chosen, rejected)


def _candidates(row: Row) -> Preference:
    prompt, *answers = _texts(row, "input_text", "candidate_0", "candidate_1")
    choice = row["choice"]
    if type(choice) is not int or choice not in (0, 1):
        raise RecordError("choice", show(choice), EXPECTED["choice"])
    return _preference(prompt, answers[choice], answers[1 - choice], "candidate_1")


def _chosen_rejected(row: Row) -> Preference:
    """Plain, or conversational; answers that repeat the prompt's turns, as some data sets have them, lose them."""
    if all(isinstance(row[key], str) for key in ("prompt", "chosen", "rejected")):
        return _preference(_text(row, "prompt"), _text(row, "chosen"), _text(row, "rejected"), "rejected")
    prompt = _side(row, "prompt", "user")
    _prompt_turns(prompt, "prompt")

    def answer(key: str) -> tuple[Message, ...]:
        turns = _side(row, key, "assistant")
        repeated = turns[: len(prompt)] == prompt and len(turns) > len(prompt)
        return _answer(turns[len(prompt) :] if repeated else turns, key)

    return _preference(prompt, answer("chosen"), answer("rejected"), "rejected")


def _rationale(row: Row) -> Rationale:
    label, rationale = (_text(row, key) if key in row else None for key in ("output_text", "rationale"))
    return Rationale(_text(row, "input_text"), label, rationale)


def _prompt_only(row: Row) -> Prompt:
    if not isinstance(row["prompt"], list):
        return Prompt(_text(row, "prompt"))
    return _prompt_turns(_turns(row["prompt"], "prompt"), "prompt")


NATIVE = ("input_text", "output_text")
DIALECTS = (
    Dialect(NATIVE, (Supervised,), lambda r: Supervised(*_texts(r, *NATIVE))),
    Dialect(("prompt", "completion"), (Supervised, Chat), _prompt_completion),
    Dialect(("instruction", "output"), (Supervised,), _instruction),
    Dialect(("contents",), (Chat,), lambda r: _chat(_contents(r), "contents")),
    Dialect(("messages",), (Chat,), lambda r: _chat(_turns(r["messages"], "messages"), "messages")),
    Dialect(("input_text", "candidate_0", "candidate_1", "choice"), (Preference,), _candidates),
    Dialect(("prompt", "chosen", "rejected"), (Preference,), _chosen_rejected),
    Dialect(("input_text",), (Rationale,), _rationale),
    Dialect(("input_text",), (Prompt,), lambda r: Prompt(_text(r, "input_text"))),
    Dialect(("prompt",), (Prompt,), _prompt_only),
    Dialect(("messages",), (Prompt,), lambda r: _prompt_turns(_turns(r["messages"], "messages"), "messages")),
    Dialect(("contents",), (Prompt,), lambda r: _prompt_turns(_contents(r), "contents")),
)

_FILLED = "a string that is not empty"
EXPECTED = {
    **dict.fromkeys(("input_text", "prompt", "instruction"), f"{_FILLED}: the record has no prompt"),
    **dict.fromkeys(("output_text", "completion", "output"), f"{_FILLED}: the record has no completion"),
    **dict.fromkeys(("candidate_0", "candidate_1", "chosen", "rejected"), f"{_FILLED}: the record lacks an answer"),
    "choice": "0 or 1, the number of the preferred candidate",
    "rationale": f"{_FILLED}, or null",
}
"""What a key should hold, for messages."""


def show(value: object) -> str:
    """A short description of a record's value."""
    if isinstance(value, str):
        return f"the string {value!r}" if len(value) <= 40 else f"the string {value[:37]!r}…"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return f"an object with keys {', '.join(map(repr, value)) or 'none'}"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
