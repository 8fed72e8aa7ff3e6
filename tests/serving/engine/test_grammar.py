"""Answers by a JSON schema: only its instances, in bounded time, and refusals that say why."""

import json
import random
import time

import jsonschema
import numpy as np
import pytest
from serving_world import byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from raytune_llm.errors import InputError
from raytune_llm.serving.engine.detokenize import decode
from raytune_llm.serving.engine.grammar import LONGEST_SCHEMA, LONGEST_SPACE, compile_grammar, start_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["é", "two", None]}, "maxItems": 2},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}

ENDLESS = '{"type": "integer", "multipleOf": 99999989, "minimum": 0, "maximum": 1000000000000000}'
"""Without limits its compiler takes minutes."""


@pytest.fixture(params=[byte_level_tokenizer, byte_fallback_tokenizer], ids=["byte_level", "byte_fallback"])
def tokenizer(request):
    return request.param()


def random_answer(tokenizer, schema, draw, size):
    """Tokens drawn from those allowed until the end token comes, which is one of them."""
    return random_walk(start_grammar(tokenizer, json.dumps(schema), [tokenizer.eos_token_id]), tokenizer, draw, size)


def random_walk(grammar, tokenizer, draw, size):
    stop, answer = tokenizer.eos_token_id, []
    while len(answer) < 2000:
        allowed = np.flatnonzero(grammar.allowed(size))
        if stop in allowed:
            return answer
        answer.append(int(draw.choice(allowed)))
        grammar.add(answer[-1])
    raise AssertionError("no end")


@pytest.mark.parametrize("extra", [0, 7, -3], ids=["as_many", "padded", "fewer"])
def test_all_answers_that_end_are_instances_of_the_schema(tokenizer, extra):
    draw = random.Random(0)
    for _ in range(10):
        answer = random_answer(tokenizer, PERSON, draw, len(tokenizer) + extra)
        assert all(token < len(tokenizer) for token in answer)
        jsonschema.validate(json.loads(decode(tokenizer, answer)), PERSON)


def test_end_tokens_are_allowed_only_where_the_text_is_complete(tokenizer):
    stops = [tokenizer.eos_token_id, 1]
    grammar = start_grammar(tokenizer, '{"type": "integer"}', stops)
    assert not grammar.allowed(len(tokenizer))[stops].any()
    (digit,) = tokenizer.encode("7", add_special_tokens=False)[-1:]
    grammar.add(digit)
    assert grammar.allowed(len(tokenizer))[stops].all()
    grammar.add(stops[1])
    assert grammar.error is None
    other = start_grammar(tokenizer, '{"type": "integer"}', [1])
    other.allowed(len(tokenizer))
    other.add(digit)
    assert other.allowed(len(tokenizer))[[tokenizer.eos_token_id, 1]].tolist() == [False, True]


def test_white_space_does_not_go_on_for_ever(tokenizer):
    (space,) = tokenizer.encode("a b", add_special_tokens=False)[-2:-1]
    grammar, num_spaces = start_grammar(tokenizer, '{"type": "array"}', [2]), 0
    grammar.add(tokenizer.encode("[", add_special_tokens=False)[-1])
    while (allowed := grammar.allowed(len(tokenizer)))[space]:
        grammar.add(space)
        num_spaces += 1
    assert num_spaces == LONGEST_SPACE
    assert allowed.any()
    needed = start_grammar(tokenizer, json.dumps({"const": " " * (LONGEST_SPACE + 9)}), [2])
    assert random_walk(needed, tokenizer, random.Random(0), len(tokenizer))


def test_answers_by_one_schema_do_not_share_their_place_in_it():
    tokenizer = byte_level_tokenizer()
    one, two = (start_grammar(tokenizer, json.dumps(PERSON), [2]) for _ in range(2))
    before = two.allowed(len(tokenizer))
    one.add(int(np.flatnonzero(one.allowed(len(tokenizer)))[-1]))
    assert np.array_equal(two.allowed(len(tokenizer)), before)
    assert not np.array_equal(one.allowed(len(tokenizer)), before)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "neither an object nor a boolean"),
        ('{"type": "strin"}', "Invalid type: strin"),
        ('{"not": {"type": "string"}}', r'Unimplemented keys: \["not"\]'),
        ('{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}', "Unimplemented keys"),
        ('{"$ref": "#"}', "allows no text"),
        ('{"$ref": "http://example.com/x.json"}', "does not fetch"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"a":' * 20_001, f"at most {LONGEST_SCHEMA}"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "recursion"),
        ('{"const": "\ud800"}', "lone surrogate"),
        (json.dumps({"const": "\ud800"}), "hex escape"),
        (ENDLESS, "too much time or memory"),
        (json.dumps({"type": "string", "pattern": "(((a{1,900}){1,900}){1,900}b?){900}"}), ""),
    ],
)
def test_schemas_that_cannot_be_used_are_refused_with_the_reason_and_in_time(schema, reason):
    tokenizer = byte_level_tokenizer()
    start = time.perf_counter()
    if reason:
        with pytest.raises(InputError, match=reason):
            compile_grammar(tokenizer, schema)
    else:
        compile_grammar(tokenizer, schema)  # bounded, but not refused: only an answer could show how large it gets
    assert time.perf_counter() - start < 15


def test_a_reason_is_short_however_long_the_schema_is():
    with pytest.raises(InputError, match="repetition operator") as caught:
        compile_grammar(byte_level_tokenizer(), json.dumps({"type": "string", "pattern": "*" + "a" * 50_000}))
    assert len(str(caught.value)) < 700


def test_a_refused_schema_is_not_tried_again():
    start = time.perf_counter()
    for _ in range(50):
        with pytest.raises(InputError, match="too much time or memory"):
            compile_grammar(byte_level_tokenizer(), ENDLESS)
    assert time.perf_counter() - start < 15


def test_tokenizers_that_have_no_bytes_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(InputError, match="has none"):
        compile_grammar(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), "{}")
    with pytest.raises(InputError, match="has none"):
        compile_grammar(ByT5Tokenizer(), "{}")


def test_an_answer_that_exceeds_the_limits_ends_with_an_error_and_spoils_no_later_one():
    tokenizer = byte_level_tokenizer()
    schema = json.dumps({"type": "string", "pattern": "(.*a.{14}b|c)*"})
    draw = random.Random(0)
    for _ in range(2):
        grammar = start_grammar(tokenizer, schema, [2])
        grammar.allowed(len(tokenizer))
        grammar.add(tokenizer.encode('"', add_special_tokens=False)[-1])
        letters = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in "abcx"]
        num_steps = 0
        while grammar.allowed(len(tokenizer)) is not None and num_steps < 20_000:
            grammar.add(draw.choice(letters))
            num_steps += 1
        assert num_steps > 10
        assert "the answer can't continue by its JSON schema: " in str(grammar.error)
