"""The text that a chat template makes of a conversation, with tools, calls of them and their results.

A template that leaves any of these out is refused, and so is one with an error: the message names its line.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from raytune_llm.data.records import Message
from raytune_llm.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TemplateRefusal(TemplateError, InputError):
    """The chat template refuses a conversation."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """The text of a conversation, with the header of the next answer if `generation_prompt`.

    Raises:
        TemplateRefusal: the template rejects these turns.
        InputError: it has an error, naming its line, or it leaves out tools, calls of them or their results.
        ValueError: there is no template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template; supply_template gives it one")
    if not messages:
        raise InputError("the conversation has no turn; write at least a user turn")
    tools = json.loads(messages[0].tools) if messages[0].tools else None
    if tools or any(message.role == "tool" or message.tool_calls for message in messages):
        require_rendered(messages, *rendered_tools(tokenizer, str(tokenizer.chat_template)))
    turns = [as_dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # whatever a template's expressions may raise
        raise _render_error(error, messages) from error
    if messages[0].role == "system" and messages[0].content.strip() not in str(text):
        raise InputError(
            "the base's chat template leaves out the system turn, so that the model would never see it; take a base "
            "whose template has it, set model.chat_template, or write it into the first user turn"
        )
    return str(text)


def as_dict(message: Message) -> dict[str, Any]:
    """A turn as chat templates take it, with the arguments of tool calls as objects."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.call_id is not None:
        turn["tool_call_id"] = message.call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _render_error(error: Exception, messages: Sequence[Message]) -> InputError:
    """Why a template renders nothing: it refuses the turns, or has an error in one of its lines."""
    reason = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in first_line(error))
    roles = ", ".join(message.role for message in messages[:8]) + (", …" if len(messages) > 8 else "")
    if type(error) is TemplateError:  # raise_exception, which transformers offers to templates
        return TemplateRefusal(
            f"the chat template refuses a conversation of the turns [{roles}]: {reason}; "
            "write the turns as it expects them, or set model.chat_template"
        )
    line = error.lineno if isinstance(error, TemplateSyntaxError) else _line(error)
    where = f" at line {line}" if line else ""
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return InputError(
        f"the chat template has an error{where}, with the turns [{roles}]: {kind}{reason}; "
        "correct it, or set model.chat_template to another"
    )


def _line(error: Exception) -> int | None:
    """The line of a template in which an error was raised; Jinja puts it into the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


PROBE = (
    {"role": "user", "content": "probe"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": "probe0001",
                "function": {"name": "probe_call", "arguments": {"key": "probe_value"}},
            }
        ],
    },
    {"role": "tool", "content": "probe_result", "name": "probe_call", "tool_call_id": "probe0001"},
)
PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "probe_tool",
            "description": "probe_description",
            "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "probe"}}},
        },
    }
]


@lru_cache(maxsize=16)
def rendered_tools(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[bool, bool, bool]:
    """Whether the template renders tools, calls of them with their arguments, and results, each as such."""

    def rendered(turns: Sequence[dict[str, Any]], tools: Any = None) -> str:
        try:
            return str(tokenizer.apply_chat_template([*turns], tools=tools, tokenize=False))
        except Exception:  # a template that fails on them renders none of it
            return ""

    other = rendered([*PROBE[:2], {**PROBE[2], "role": "probe_role"}])
    calls = rendered(PROBE[:2])
    results = rendered(PROBE) or rendered([PROBE[0], {"role": "assistant", "content": "probe"}, PROBE[2]])
    return (
        "probe_tool" in rendered(PROBE[:1], PROBE_TOOLS),
        "probe_call" in calls and "probe_value" in calls,
        "probe_result" in results and results != other,
    )


def require_rendered(messages: Sequence[Message], tools: bool, calls: bool, results: bool) -> None:
    """Raise InputError for what a conversation has and the template does not render."""
    for what, key, has, does in (
        ("tools", "tools", bool(messages[0].tools), tools),
        ("tool calls", "tool_calls", any(message.tool_calls for message in messages), calls),
        ("the results of tools", None, any(message.role == "tool" for message in messages), results),
    ):
        if has and not does:
            rest = f"; or data.ignore=[{key}] leaves them out" if key == "tools" else ""
            raise InputError(
                f"the base's chat template doesn't render {what}, so that the model would never see them; take a base "
                f"whose template does, or set model.chat_template{rest}"
            )
