"""Chat templates: one for tokenizers that have none, and where the answers are in the text that a template renders.

Answers are found in the rendered text itself, so that templates need no generation markers. A template is refused where
the trained text would not be the generated one: when the last answer does not follow the text that prompts for it, when
an earlier one does not follow at least a part of it, or when an answer ends in no special token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from raytune_llm.data.dialects.tool_calls import names_of
from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.rendering import render
from raytune_llm.errors import InputError

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


def answer_spans(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    turns: Sequence[int],
    end_of_turn: re.Pattern[str],
) -> list[tuple[int, int]]:
    """The spans of the answers of `turns` (indices of messages) in `text`, the rendered conversation.

    Characters [start, end): all that is generated after the prompt for that answer, its end token included.
    `end_of_turn`: the tokenizer's.
    """
    spans = [_span(tokenizer, end_of_turn, text, messages, i) for i in turns]
    for (_, end), (start, _) in pairwise(spans):
        if end > start:
            raise template_error("it changes an answer", text, start)
    return spans


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What an answer may end in: any special token, after white space. A tokenizer may have hundreds of them: made
    once."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, sorted({*special, str(tokenizer.eos_token)}))) + ")")


def _span(
    tokenizer: PreTrainedTokenizerBase, end_of_turn: re.Pattern[str], text: str, messages: Sequence[Message], i: int
) -> tuple[int, int]:
    answer, calls = messages[i].content, messages[i].tool_calls
    prompt = render(tokenizer, messages[:i], generation_prompt=True)
    is_last = i == len(messages) - 1
    if is_last and not text.startswith(prompt):
        raise template_error(
            f"the last answer does not follow its prompt, which ends in {prompt[-40:]!r}", text, len(text)
        )
    before = "" if text.startswith(prompt) else render(tokenizer, messages[:i], generation_prompt=False)
    start = _start(text, prompt, before, None if calls else answer)
    found = text.find(answer, start)
    if found < 0:
        what = "leaves out the text of an answer that calls tools," if calls else "changes the answer"
        raise template_error(f"it {what} {answer[:40]!r}", text, start)
    if calls is not None:
        names = names_of(calls)
        whole = text if is_last else render(tokenizer, messages[: i + 1], generation_prompt=False)
        own = start if is_last else _start(whole, prompt, before, None)
        return start, _end_of_calls(end_of_turn, (text, start), (whole, own), names)
    while found >= 0:
        if end := end_of_turn.match(text, found + len(answer)):
            return start, end.end()
        found = text.find(answer, found + 1)
    raise template_error("an answer does not end in a special token such as {{ eos_token }}", text, start)


def _start(text: str, prompt: str, before: str, answer: str | None) -> int:
    """Start of an answer that follows its generation prompt, or only a part of it (without its empty thought, for
    example). `before` is the text of the turns before, `answer` its text, None for one that calls tools."""
    if text.startswith(prompt):
        return len(prompt)
    if text.startswith(before) and prompt.startswith(before):
        header = prompt[len(before) :]
        for length in range(len(header), -1, -1):
            start = len(before) + length
            is_whole = header[:length][-1:] in ("", ">", "\n", " ")  # else a word of the header and one of the call mix
            if (is_whole if answer is None else text.startswith(answer, start)) and text.startswith(
                header[:length], len(before)
            ):
                return start
    raise template_error("the text before an answer is not the text that prompts for it", text, len(before))


def _end_of_calls(
    end_of_turn: re.Pattern[str], answer: tuple[str, int], alone: tuple[str, int], names: Sequence[str]
) -> int:
    """The end of an answer with calls of the functions `names`: as where it is the last turn, the last special token.

    Args:
        answer: the rendered conversation, and where the answer starts in it.
        alone: the same of the conversation up to this answer.
    """
    text, whole = answer[0], alone[0]
    place, own = (_after(names, *found) for found in (answer, alone))
    rest = whole[own:].rstrip()
    ends = [match.end() for match in end_of_turn.finditer(rest)]
    if not ends or ends[-1] != len(rest):
        raise template_error("an answer does not end in a special token such as {{ eos_token }}", text, answer[1])
    if not text.startswith(rest, place):
        raise template_error("it renders tool calls differently once turns follow them", text, place)
    return place + len(rest)


def _after(names: Sequence[str], text: str, start: int) -> int:
    """Where the last of the names ends, each looked for after the one before."""
    for name in names:
        found = text.find(name, start)
        if found < 0:
            raise template_error(f"it leaves out the call of {name[:40]!r}", text, start)
        start = found + len(name)
    return start


def template_error(what: str, text: str, at: int) -> InputError:
    """Why the chat template can't be trained on, with the text around character `at`."""
    near = f"{text[max(0, at - 40) : at]} ▸ {text[at : at + 40]}"
    return InputError(
        f"the chat template can't be trained on: {what}, at ▸ in {near!r}; set model.chat_template to another"
    )
