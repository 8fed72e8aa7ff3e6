"""Grammars are made in threads of their own: known schemas at once, new ones after a check, one at a time.

A check may take seconds (grammar.py). So those that wait are bounded in number, and nothing else waits behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Busy
from raytune_llm.serving.engine.grammar import Grammar, compile_grammar, is_known, start_grammar

MOST_WAITING = 16
"""New schemas that may wait for their check, with the one that is checked."""


class _Check:
    def __init__(self, future: Future[None]) -> None:
        self.future, self.num_waiting = future, 0


_checks: dict[str, _Check] = {}
"""By schema."""
_known = ThreadPoolExecutor(1, thread_name_prefix="raytune_llm_grammar")
_new = ThreadPoolExecutor(1, thread_name_prefix="raytune_llm_schema_check")


async def grammar_of(tokenizer: Any, schema: str, stop_ids: Sequence[int]) -> Grammar:
    """`start_grammar` outside the event loop.

    Raises:
        Busy: too many new schemas wait.
        InputError: as `compile_grammar`.
    """
    if not is_known(schema):
        await _checked(tokenizer, schema)
    return await asyncio.get_running_loop().run_in_executor(_known, start_grammar, tokenizer, schema, stop_ids)


async def _checked(tokenizer: Any, schema: str) -> None:
    """Once this schema has been checked, for all answers that wait for it. It isn't when all of them have left."""
    check = _checks.get(schema)
    if check is None:
        if len(_checks) >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} new JSON schemas are waiting to be checked")
        check = _checks[schema] = _Check(_new.submit(_check, tokenizer, schema))
        check.future.add_done_callback(lambda _: _checks.pop(schema, None))
    check.num_waiting += 1
    try:
        await asyncio.wait([asyncio.wrap_future(check.future)])
    finally:
        check.num_waiting -= 1
        if not check.num_waiting:
            check.future.cancel()


def _check(tokenizer: Any, schema: str) -> None:
    with suppress(InputError):  # which start_grammar raises again, for each answer
        compile_grammar(tokenizer, schema)
