"""New JSON schemas are checked in a bounded line; known ones and other work pass it."""

import asyncio
import json
import threading

import pytest
from serving_world import byte_level_tokenizer

from raytune_llm.errors import InputError
from raytune_llm.serving.engine import grammar
from raytune_llm.serving.engine.base import Busy
from raytune_llm.serving.engine.schema_checks import MOST_WAITING, _checks, grammar_of


def schema(name):
    return json.dumps({"const": name})


@pytest.fixture
def held(monkeypatch):
    """Checks of hostile schemas don't end until it is set; `started` counts them."""
    may_end, check = threading.Event(), grammar._check

    def slow(text):
        if "hostile" in text:
            held.checked.append(text)
            assert may_end.wait(30)
            return "hostile"
        return check(text)

    held = may_end
    held.checked = []
    monkeypatch.setattr(grammar, "_check", slow)
    yield held
    may_end.set()


def test_known_schemas_and_threads_of_others_pass_hostile_ones_and_the_line_is_bounded(held):
    tokenizer = byte_level_tokenizer()
    grammar.compile_grammar(tokenizer, schema("known"))

    async def run():
        hostile = [schema(f"hostile bounded {i}") for i in range(MOST_WAITING)]
        waiting = [asyncio.create_task(grammar_of(tokenizer, text, [2])) for text in hostile for _ in range(3)]
        await asyncio.sleep(0.1)
        assert (await grammar_of(tokenizer, schema("known"), [2])).allowed(len(tokenizer)).any()
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
        with pytest.raises(Busy, match="16 new JSON schemas are waiting to be checked"):
            await grammar_of(tokenizer, schema("new"), [2])
        held.set()
        refusals = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(error) for error in refusals} == {"the JSON schema is refused: hostile"}
        assert all(isinstance(error, InputError) for error in refusals)
        assert held.checked == hostile
        assert (await grammar_of(tokenizer, schema("new"), [2])).allowed(len(tokenizer)).any()

    asyncio.run(run())
    assert not _checks


def test_schemas_of_clients_that_have_left_are_not_checked(held):
    tokenizer = byte_level_tokenizer()

    async def run():
        texts = [schema(f"hostile left {i}") for i in range(5)]
        waiting = [asyncio.create_task(grammar_of(tokenizer, text, [2])) for text in texts]
        both = asyncio.create_task(grammar_of(tokenizer, texts[1], [2]))
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        held.set()
        with pytest.raises(InputError):
            await both
        return texts

    texts = asyncio.run(run())
    assert held.checked == texts[:2]
    assert not _checks


def test_a_schema_that_is_no_text_at_all_is_refused():
    tokenizer = byte_level_tokenizer()
    for text, reason in (('{"const": "\ud800"}', "lone surrogate"), ("x" * 100_001, "characters; at most")):
        with pytest.raises(InputError, match=reason):
            asyncio.run(grammar_of(tokenizer, text, [2]))
