"""Chat templates: one for tokenizers that have none, and where the answers are in the text that a template renders.

Answers are found in the rendered text itself, so that templates need no generation markers. A template is refused where
the trained text would not be the generated one: when the last answer does not follow the text that prompts for it, when
an earlier one does not follow at least a part of it, or when an answer ends in no special token.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from raytune_llm.data.records import Message
from raytune_llm.data.tool_calls import names_of
from raytune_llm.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': 'System: ', 'user': 'User: ', 'assistant': 'Assistant: '}[message['role']] }}"
    "{{ message['content'] | trim }}{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}"
    "{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
"""For tokenizers without a template. The space before an answer belongs to the answer: there every tokenizer splits."""

NO_THINKING = "{%- set enable_thinking = enable_thinking if enable_thinking is defined else false %}"


class TemplateRefusal(TemplateError, InputError):
    """The chat template refuses a conversation."""


def supply_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a chat template and a pad token that the embedding already has, where it lacks them.

    A template with a thinking mode (`enable_thinking`) has it off by default. The pad token is unk, or else EOS.

    Raises:
        InputError: there is no EOS token.
    """
    require_eos(tokenizer)
    if tokenizer.chat_template is None:
        prefix, _ = added_tokens(tokenizer)
        has_bos = tokenizer.bos_token_id is not None and prefix == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if has_bos else "") + PLAIN_TEMPLATE
    elif "enable_thinking" in tokenizer.chat_template and NO_THINKING not in tokenizer.chat_template:
        tokenizer.chat_template = NO_THINKING + tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    before = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[:before]), list(whole[before + len(bare) :])


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The EOS token's id. Raises InputError when there is none."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos_token, so that no answer could end; set it in tokenizer_config.json")
    return int(tokenizer.eos_token_id)


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


def answer_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], turns: Sequence[int]
) -> list[tuple[int, int]]:
    """The spans of the answers of `turns` (indices of messages) in `text`, the rendered conversation.

    Characters [start, end): all that is generated after the prompt for that answer, its end token included.
    """
    end_of_turn = _end_of_turn(tokenizer)
    spans = [_span(tokenizer, end_of_turn, text, messages, i) for i in turns]
    for (_, end), (start, _) in pairwise(spans):
        if end > start:
            raise template_error("it changes an answer", text, start)
    return spans


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, sorted({*special, str(tokenizer.eos_token)}))) + ")")


def _span(
    tokenizer: PreTrainedTokenizerBase, end_of_turn: re.Pattern[str], text: str, messages: Sequence[Message], i: int
) -> tuple[int, int]:
    calls = messages[i].tool_calls
    answer = messages[i].content
    prompt = render(tokenizer, messages[:i], generation_prompt=True)
    if text.startswith(prompt):
        start = len(prompt)
    elif i == len(messages) - 1:
        raise template_error(
            f"the last answer does not follow its prompt, which ends in {prompt[-40:]!r}", text, len(text)
        )
    else:
        start = _start_after_part(text, prompt, render(tokenizer, messages[:i], generation_prompt=False), answer)
    found = text.find(answer, start)
    if found < 0:
        raise template_error(f"it changes the answer {answer[:40]!r}", text, start)
    if calls is not None:
        return start, _end_of_calls(tokenizer, end_of_turn, text, messages, i, start)
    while found >= 0:
        if end := end_of_turn.match(text, found + len(answer)):
            return start, end.end()
        found = text.find(answer, found + 1)
    raise template_error("an answer does not end in a special token such as {{ eos_token }}", text, start)


def _end_of_calls(
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: re.Pattern[str],
    text: str,
    messages: Sequence[Message],
    i: int,
    start: int,
) -> int:
    """The end of an answer with tool calls: the last special token before the next turn."""
    whole = text if i == len(messages) - 1 else render(tokenizer, messages[: i + 1], generation_prompt=False).rstrip()
    if not text.startswith(whole):
        raise template_error("it renders tool calls differently once turns follow them", text, start)
    place = start
    for name in names_of(messages[i].tool_calls or "[]"):
        found = text.find(name, place, len(whole))
        if found < 0:
            raise template_error(f"it leaves out the call of {name[:40]!r}", text, start)
        place = found + len(name)
    ends = [match.end() for match in end_of_turn.finditer(whole, place)]
    if not ends or whole[ends[-1] :].strip():
        raise template_error("an answer does not end in a special token such as {{ eos_token }}", text, start)
    return ends[-1]


def _start_after_part(text: str, prompt: str, before: str, answer: str) -> int:
    """Start of an answer that follows only a part of its generation prompt (without its empty thought, for example)."""
    if text.startswith(before) and prompt.startswith(before):
        header = prompt[len(before) :]
        for length in range(len(header), -1, -1):
            start = len(before) + length
            if text.startswith(header[:length], len(before)) and text.startswith(answer, start):
                return start
    raise template_error("the text before an answer is not the text that prompts for it", text, len(before))


def template_error(what: str, text: str, at: int) -> InputError:
    """Why the chat template can't be trained on, with the text around character `at`."""
    near = f"{text[max(0, at - 40) : at]} ▸ {text[at : at + 40]}"
    return InputError(
        f"the chat template can't be trained on: {what}, at ▸ in {near!r}; set model.chat_template to another"
    )
