"""What is remembered for a tokenizer goes with it."""

import gc
import weakref

import pytest
from serving_world import byte_level_tokenizer

from raytune_llm.data.tokenizing.literal import _added, _literal_backend
from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
from raytune_llm.data.tokenizing.rendering import rendered_tools
from raytune_llm.serving.api.tool_format import tool_format
from raytune_llm.serving.engine.detokenize import byte_tokens, skipped_tokens
from raytune_llm.serving.engine.grammar import _llguidance_tokenizer
from raytune_llm.serving.engine.token_bytes import data_of_one, decode_one

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_each_tokenizer_and_argument_is_computed_once_and_an_error_again():
    computed = []

    @per_tokenizer
    def half(tokenizer, number):
        computed.append(number)
        return [number // number * 2]

    one, other = byte_level_tokenizer(), byte_level_tokenizer()
    assert half(one, 3) is half(one, 3) and half(other, 3) is not half(one, 3)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            half(one, 0)
    assert computed == [3, 3, 0, 0]


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (_added, ()),
        (_literal_backend, ()),
        (rendered_tools, (TEMPLATE,)),
        (tool_format, (TEMPLATE,)),
        (byte_tokens, ()),
        (skipped_tokens, ()),
        (_llguidance_tokenizer, ()),
        (data_of_one, (5,)),
        (decode_one, (5,)),
    ],
)
def test_no_table_keeps_a_tokenizer(function, more):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    kept = weakref.ref(tokenizer)
    assert function(tokenizer, *more) is function(tokenizer, *more)
    del tokenizer
    gc.collect()
    assert kept() is None
