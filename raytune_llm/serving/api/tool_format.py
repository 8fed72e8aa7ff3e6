"""The form in which a chat template writes calls of tools, and how calls are found in answers.

The form is read off the template: it renders one call of a function that has a known name, and what is written before,
in and after its JSON is the form. So answers are read as they were learned: <tool_call>{"name": …, "arguments": …}
</tool_call> by Hermes and Qwen, {"name": …, "parameters": …} by Llama 3, [TOOL_CALLS] [{…}] by Mistral. Leaves out
forms that aren't JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
from raytune_llm.data.tokenizing.rendering import PROBE, PROBE_TOOLS, rendered_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_NAME, PROBE_VALUE = "probe_call", "probe_value"


@dataclass(frozen=True)
class Call:
    """One call that an answer makes."""

    name: str
    arguments: str
    """JSON text of an object."""


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written."""

    opening: str
    """Before the JSON of a call, control tokens included."""
    marker: str
    """The same as it is in an answer's text, without control tokens and white space; "" where there is nothing."""
    end: str
    """After the JSON of a call, in the same way."""
    name_key: str
    arguments_key: str
    is_list: bool
    """Whether the JSON is a list of calls."""

    def calls(self, text: str, names: Sequence[str]) -> tuple[str, list[Call]]:
        """An answer's text without its calls of these functions, and the calls. Without any, the text is unchanged."""
        head, found, rest = text.partition(self.marker) if self.marker else ("", "", text)
        if self.marker and not found:
            return text, []
        calls: list[Call] = []
        rest = rest.lstrip()
        while rest:
            parsed = self._first(rest, names)
            if parsed is None:
                break
            calls += parsed[0]
            rest = parsed[1].lstrip().removeprefix(self.end).lstrip()
            rest = rest.removeprefix(self.marker).removeprefix(";").lstrip() if rest else ""
        return (head.rstrip(), calls) if calls else (text, [])

    def _first(self, text: str, names: Sequence[str]) -> tuple[list[Call], str] | None:
        """The calls in the JSON that a text begins with, and what follows; None where it begins with no calls."""
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return None
        items = value if isinstance(value, list) else [value]
        calls = [call for item in items if (call := self._call(item, names)) is not None]
        return (calls, text[end:]) if calls and len(calls) == len(items) else None

    def _call(self, item: Any, names: Sequence[str]) -> Call | None:
        if not isinstance(item, dict) or item.get(self.name_key) not in names:
            return None
        keys = [key for key in (self.arguments_key, "arguments", "parameters") if key in item]
        arguments = item[keys[0]] if keys else {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        return Call(item[self.name_key], json.dumps(arguments, ensure_ascii=False))

    def schema(self, tools: Sequence[tuple[str, dict[str, Any] | None]]) -> str:
        """JSON text of the schema of one call of one of these functions, each with the schema of its arguments."""
        definitions: dict[str, Any] = {}
        calls = []
        for place, (name, parameters) in enumerate(tools):
            arguments = _with_own_definitions(parameters or {"type": "object"}, f"tool{place}_", definitions)
            calls.append(
                {
                    "type": "object",
                    "properties": {self.name_key: {"const": name}, self.arguments_key: arguments},
                    "required": [self.name_key, self.arguments_key],
                    "additionalProperties": False,
                }
            )
        call: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
        if self.is_list:
            call = {"type": "array", "items": call, "minItems": 1, "maxItems": 1}
        return json.dumps({**call, **({"$defs": definitions} if definitions else {})})


PLAIN = ToolFormat(opening="", marker="", end="", name_key="name", arguments_key="arguments", is_list=False)


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool, bool]:
    """Whether the chat template renders tools, calls of them, and their results."""
    found = rendered_tools(tokenizer, str(tokenizer.chat_template))
    return found[0] is True, found[1] is True, found[2] is True


@per_tokenizer
def tool_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ToolFormat | None:
    """The form of this template; None where it isn't JSON."""
    text = _rendered(tokenizer, PROBE[:2], generation_prompt=False)
    prompt = _rendered(tokenizer, PROBE[:1], generation_prompt=True)
    answer = text[_common(text, prompt) :]
    name = answer.find(PROBE_NAME)
    for begin in (place for place, character in enumerate(answer[: max(name, 0)]) if character in "[{"):
        try:
            value, length = json.JSONDecoder().raw_decode(answer[begin:])
        except ValueError:
            continue
        item = value[0] if isinstance(value, list) and value else value
        keys = _keys(item) if isinstance(item, dict) else None
        if keys is None:
            continue
        control = sorted({str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True)
        opening, after = answer[:begin], answer[begin + length :]
        marker, end = (_without(part, control) for part in (opening, after))
        return ToolFormat(opening, marker, end, *keys, isinstance(value, list))
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], *, generation_prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            [*turns], tools=PROBE_TOOLS, tokenize=False, add_generation_prompt=generation_prompt
        )
    )


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _keys(item: dict[str, Any]) -> tuple[str, str] | None:
    """The keys of a call's name and of its arguments."""
    names = [key for key, value in item.items() if value == PROBE_NAME]
    arguments = [key for key, value in item.items() if PROBE_VALUE in json.dumps(value)]
    return (names[0], arguments[0]) if names and arguments else None


def _without(text: str, control: Sequence[str]) -> str:
    """Up to the first control token after other text, without control tokens and white space."""
    for token in control:
        text = text.replace(token, "\0")
    return next((part.strip() for part in text.split("\0") if part.strip()), "")


def _with_own_definitions(schema: dict[str, Any], prefix: str, definitions: dict[str, Any]) -> Any:
    """A schema whose definitions are moved to the root's, under names of its own."""
    own = {**schema.get("definitions", {}), **schema.get("$defs", {})}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/")):
            return {**value, "$ref": f"#/$defs/{prefix}{reference.split('/', 2)[2]}"}
        return {key: moved(item) for key, item in value.items()}

    definitions |= {prefix + name: moved(value) for name, value in own.items()}
    return moved({key: value for key, value in schema.items() if key not in ("$defs", "definitions")})
