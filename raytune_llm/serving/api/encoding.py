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


class PromptEncoder:
    """In the served version's own form. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="raytune_llm_encode")

    async def chat(self, served: ServedModel, request: ChatRequest, opening: str) -> Prompt:
        """The conversation's prompt. Raises ApiError when the template rejects it."""
        turns = request.prompt
        texts = [text for turn in turns for text in (turn.content, turn.tools, turn.tool_calls) if text]

        def make() -> Prompt:
            _require_pair(request.form, turns)
            return of_chat(served, turns, request.form, opening=opening)

        return await self._encode(served, make, texts, "messages")

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
        prompts = await self._encode(served, make, [text for text in given if isinstance(text, str)], "prompt")
        if not all(prompt.ids for prompt in prompts):
            raise invalid("prompt: it has no token; write at least one character", param="prompt")
        return prompts

    async def _encode(self, served: ServedModel, make: Callable[[], T], texts: Sequence[str], param: str) -> T:
        """The one place where text is encoded. Raises ApiError, which names `param`."""
        try:
            # the first text with control tokens makes a tokenizer of its own, which takes longer
            if sum(map(len, texts)) < SHORT_CHARACTERS and not any(map(served.tokens.control_tokens_in, texts)):
                return make()
            return await asyncio.get_running_loop().run_in_executor(self._pool, make)
        except ApiError:
            raise
        except InputError as error:
            raise invalid(f"{served.id}: {error}", param=param) from error


def _require_pair(form: PromptForm | None, turns: Sequence[Message]) -> None:
    if form is PromptForm.pair and (len(turns) != 1 or turns[0].role != "user" or turns[0].tools):
        raise invalid("prompt_form=pair takes one user message and no tools", param="prompt_form")


def _check_ids(served: ServedModel, ids: list[int]) -> None:
    size = len(served.tokens.tokenizer)
    wrong = [index for index in ids if not 0 <= index < size]
    if wrong:
        raise invalid(f"prompt: token ids must be 0 to {size - 1}, at least one; found {wrong[:5]}", param="prompt")
