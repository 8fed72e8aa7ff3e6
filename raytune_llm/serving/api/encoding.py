"""Prompts to tokens: long ones in a thread of their own, so that the event loop answers others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raytune_llm.data.records import Message
from raytune_llm.errors import InputError
from raytune_llm.serving.api.chat_requests import ChatRequest
from raytune_llm.serving.api.errors import ApiError, invalid
from raytune_llm.serving.api.requests import CompletionRequest
from raytune_llm.serving.engine.base import PromptForm, ServedModel
from raytune_llm.serving.engine.prompts import Prompt, of_chat, of_ids, of_text

T = TypeVar("T")
SHORT_CHARACTERS = 16_000
"""A shorter prompt is encoded at once, in some milliseconds, and so doesn't wait for a longer one."""
NUM_THREADS = 2
CHARACTERS_A_TOKEN = 8
"""A text that is longer than so many for each token of the context is encoded up to there first."""
SLACK_TOKENS = 64
"""By how many tokens the beginning of a text may exceed the whole, where it is cut in a word."""


class PromptEncoder:
    """In the served version's own form. Belongs to one event loop."""

    def __init__(self, context_tokens: int | None = None) -> None:
        """`context_tokens`: longest prompt; None for no bound."""
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="raytune_llm_encode")
        self._context_tokens = context_tokens

    async def chat(self, served: ServedModel, request: ChatRequest, opening: str) -> Prompt:
        """The conversation's prompt. Raises ApiError when the template rejects it."""
        turns = request.prompt
        texts = [text for turn in turns for text in (turn.content, turn.tools, turn.tool_calls) if text]

        def make() -> Prompt:
            _require_pair(request.form, turns)
            return of_chat(served, turns, request.form, opening=opening)

        return await self._encode(served, make, [texts], "messages")

    async def texts(self, served: ServedModel, request: CompletionRequest) -> list[Prompt]:
        """The prompts, in order. Raises ApiError for wrong token ids."""
        given = request.prompts

        def make() -> list[Prompt]:
            return [
                of_text(served, prompt, request.form) if isinstance(prompt, str) else of_ids(served, prompt)
                for prompt in given
            ]

        for prompt in given:
            if not isinstance(prompt, str):
                _check_ids(served, prompt)
        texts = [[prompt] for prompt in given if isinstance(prompt, str)]
        prompts = await self._encode(served, make, texts, "prompt")
        if not all(prompt.ids for prompt in prompts):
            raise invalid("prompt: it has no token; write at least one character", param="prompt")
        return prompts

    async def _encode(self, served: ServedModel, make: Callable[[], T], prompts: list[list[str]], param: str) -> T:
        """The one place where text is encoded. `prompts`: the texts of each. Raises ApiError, which names `param`."""

        def checked() -> T:
            for texts in prompts:
                self._require_short(served, texts, param)
            return make()

        try:
            every = [text for texts in prompts for text in texts]
            # the first text with control tokens makes a tokenizer of its own, which takes longer
            if sum(map(len, every)) < SHORT_CHARACTERS and not any(map(served.tokens.control_tokens_in, every)):
                return make()
            return await asyncio.get_running_loop().run_in_executor(self._pool, checked)
        except ApiError:
            raise
        except InputError as error:
            raise invalid(f"{served.id}: {error}", param=param) from error

    def _require_short(self, served: ServedModel, texts: Sequence[str], param: str) -> None:
        """Raises ApiError when the beginning of a prompt alone exceeds the context, so that a text of any length costs
        no more than one that fills it."""
        if self._context_tokens is None:
            return
        room, count = CHARACTERS_A_TOKEN * self._context_tokens, 0
        for text in texts:
            count += len(served.tokens.tokenizer(text[: max(0, room)], add_special_tokens=False)["input_ids"])
            room -= len(text)
        if room < 0 and count > self._context_tokens + SLACK_TOKENS:
            raise invalid(
                f"this model's context is {self._context_tokens} tokens; the prompt has more than {count}; "
                "shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )


def _require_pair(form: PromptForm | None, turns: Sequence[Message]) -> None:
    if form is PromptForm.pair and (len(turns) != 1 or turns[0].role != "user" or turns[0].tools):
        raise invalid("prompt_form=pair takes one user message and no tools", param="prompt_form")


def _check_ids(served: ServedModel, ids: list[int]) -> None:
    size = len(served.tokens.tokenizer)
    wrong = [index for index in ids if not 0 <= index < size]
    if wrong:
        raise invalid(f"prompt: token ids must be 0 to {size - 1}, at least one; found {wrong[:5]}", param="prompt")
