"""The text that a chat template makes of a conversation, with tools, calls of them and their results.

A template that leaves any of these out is refused, and so is one with an error: the message names its line.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
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
    probed = None
    if tools or any(message.role == "tool" or message.tool_calls for message in messages):
        probed = rendered_tools(tokenizer, str(tokenizer.chat_template))
    turns = [as_dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # whatever a template's expressions may raise
        if probed is not None and is_refusal(error):
            require_rendered(messages, *probed)
        raise _render_error(error, messages) from error
    if probed is not None:
        require_rendered(messages, *probed)
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
    roles = ", ".join(message.role for message in messages[:8]) + (", …" if len(messages) > 8 else "")
    where, reason = place_and_reason(error)
    if is_refusal(error):
        return TemplateRefusal(
            f"the chat template refuses a conversation of the turns [{roles}]: {reason}; "
            "write the turns as it expects them, or set model.chat_template"
        )
    return InputError(
        f"the chat template has an error{where}, with the turns [{roles}]: {reason}; "
        "correct it, or set model.chat_template to another"
    )


def is_refusal(error: Exception) -> bool:
    """Whether a template raised this on purpose, by raise_exception, which transformers offers to templates."""
    return type(error) is TemplateError


def place_and_reason(error: Exception) -> tuple[str, str]:
    """Where a template has an error (" at line 3"), and which, printable."""
    reason = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in first_line(error))
    line = error.lineno if isinstance(error, TemplateSyntaxError) else _line(error)
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f" at line {line}" if line else "", kind + reason.rstrip(".")


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


Rendered = bool | str
"""Whether something is rendered; or the error that it makes a template raise, with its line."""


@per_tokenizer
def rendered_tools(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[Rendered, Rendered, Rendered]:
    """Whether the template renders tools, calls of them with their arguments, and results, each as such."""

    def rendered(turns: Sequence[dict[str, Any]], tools: Any = None) -> tuple[str, str | None]:
        """The text, and the error where there is none; a refusal is no error."""
        try:
            return str(tokenizer.apply_chat_template([*turns], tools=tools, tokenize=False)), None
        except Exception as error:  # whatever a template's expressions may raise
            where, reason = place_and_reason(error)
            return "", None if is_refusal(error) else f"it has an error{where}: {reason}"

    tools, tools_error = rendered(PROBE[:1], PROBE_TOOLS)
    calls, calls_error = rendered(PROBE[:2])
    results, results_error = rendered(PROBE)
    if not results:  # also of a template that renders no calls
        results, results_error = rendered([PROBE[0], {"role": "assistant", "content": "probe"}, PROBE[2]])
    other, _ = rendered([*PROBE[:2], {**PROBE[2], "role": "probe_role"}])
    return (
        tools_error or "probe_tool" in tools,
        calls_error or ("probe_call" in calls and "probe_value" in calls),
        results_error or ("probe_result" in results and results != other),
    )


def require_rendered(messages: Sequence[Message], tools: Rendered, calls: Rendered, results: Rendered) -> None:
    """Raise InputError for what a conversation has and the template does not render."""
    has_calls, has_results = (any(message.tool_calls for message in messages), any(m.role == "tool" for m in messages))
    for what, has, does in (
        ("tools", bool(messages[0].tools), tools),
        ("tool calls", has_calls, calls),
        ("the results of tools", has_results, results),
    ):
        if has and does is not True:
            alone = messages[0].tools and not has_calls and not has_results
            rest = "data.ignore=[tools] leaves them out" if alone else "data.on_error=skip leaves such records out"
            why = f" ({does})" if isinstance(does, str) else ""
            raise InputError(
                f"the base's chat template doesn't render {what}{why}, so that the model would never see them; take a "
                f"base whose template does, or set model.chat_template; or {rest}"
            )
