"""Prompts to tokens: long ones in a thread of their own, so that the event loop answers others meanwhile."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from raytune_llm.data.records import Text
from raytune_llm.errors import InputError
from raytune_llm.serving.api.errors import invalid
from raytune_llm.serving.engine.base import ServedModel

SHORT_CHARACTERS = 16_000
"""A shorter prompt is encoded at once, in some milliseconds, and so doesn't wait for a longer one."""
NUM_THREADS = 2


class PromptEncoder:
    """By the served version's own template. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="raytune_llm_encode")

    async def encode(self, served: ServedModel, prompt: Text, param: str) -> list[int]:
        """The prompt's tokens. Raises ApiError, which names `param`, when the template rejects it."""
        try:
            if num_characters(prompt) < SHORT_CHARACTERS:
                return served.tokens.prompt(prompt)
            return await asyncio.get_running_loop().run_in_executor(self._pool, served.tokens.prompt, prompt)
        except InputError as error:
            raise invalid(f"{served.id}: {error}", param=param) from error


def num_characters(prompt: Text) -> int:
    """Of a text or of all turns of a conversation, each of which a template extends."""
    return len(prompt) if isinstance(prompt, str) else sum(100 + len(message.content) for message in prompt)
