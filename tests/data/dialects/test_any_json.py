"""Any JSON value in any place of a record gives a record or RecordError, and what is a record can be encoded or is
refused by InputError."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
from example_records import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from raytune_llm.data.demo import path as demo_path
from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.examples import TokenSequence
from raytune_llm.data.question import question
from raytune_llm.data.records import Chat, PlainText, Preference, Prompt, Rationale, RecordError, Supervised
from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError

FAMILIES = Path(next(iter(find_spec("trl").submodule_search_locations)), "chat_templates")
WORDS = st.sampled_from(
    ["", " ", "\u200b", "\ud800", "\0", "Hi", "<|end|>", "<|user|>", "{{ x }}", "user", "assistant", "tool", "system"]
)
TEXTS = WORDS | st.text(st.characters(exclude_categories=()), max_size=8)
KEYS = TEXTS | st.sampled_from(
    [
        "role",
        "content",
        "parts",
        "text",
        "weight",
        "train",
        "tools",
        "tool_calls",
        "thought",
        "messages",
        "label",
        "name",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**300, 0, 1, -1])
IGNORED = st.sampled_from([(), (), (), ("name",), ("content", "arguments"), ("text", "weight"), ("function", "tools")])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """The paths of all values in a JSON value, its own first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(value, path):
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def changed(value, path, new, *, key=None):
    """The value with another one at `path`, or under a new key of the object there."""
    if not path:
        return {**value, key: new} if key is not None and isinstance(value, dict) else new
    made = copy.copy(value)
    made[path[0]] = changed(value[path[0]], path[1:], new, key=key)
    return made


def tokens(template, *, max_tokens=512, is_encoder_decoder=False):
    tokenizer = AutoTokenizer.from_pretrained(str(demo_path("base")))
    if template is not None:
        tokenizer.chat_template = (FAMILIES / f"{template}.jinja").read_text().replace("<|im_end|>", "<|end|>")
        tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_turn>", "<|end|>")
    supply_template(tokenizer)
    return Tokens(tokenizer, max_tokens=max_tokens, is_encoder_decoder=is_encoder_decoder)


BASES = (
    *(tokens(template) for template in (None, "qwen2_5", "qwen3", "gemma")),
    tokens("qwen2_5", max_tokens=24),
    tokens(None, is_encoder_decoder=True),
)


def encoded(record, made):
    """All that a method may make of a record."""
    match record:
        case Chat():
            return [made.conversation(record.messages)]
        case Preference():
            answers = (record.chosen, record.rejected)
            return [encode(record.prompt, answer) for encode in (made.completion, made.judged) for answer in answers]
        case Supervised():
            return [made.completion(record.prompt, record.completion)]
        case PlainText():
            return [made.text(record.text)]
        case Rationale():
            return [made.completion(record.prompt, answer) for answer in (record.label, record.rationale) if answer]
        case Prompt():
            return [TokenSequence(made.sampled_prompt(record.prompt, max_new_tokens=8), [])]


def check(raw, kinds, **options):
    try:
        record, unused = Reader(kinds, **options).read(raw)
    except RecordError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    assert type(record) in kinds and hash(record) is not None
    assert all(key.isprintable() and len(key) < 100 for key in unused)
    question(record)
    for made in BASES:
        try:
            assert all(one is None or one.input_ids for one in encoded(record, made))
        except InputError as error:
            assert str(error)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_records(name):
    row, kinds = EXAMPLES[name]
    record, _ = Reader(kinds).read(row)
    assert type(record) in kinds
    tools = "tools" in str(row)
    for made in BASES[:3]:
        if tools and made is BASES[0]:
            with pytest.raises(InputError, match="doesn't render tools"):
                encoded(record, made)
        else:
            assert all(sequence is not None for sequence in encoded(record, made))


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_value_in_any_place(name):
    row, kinds = EXAMPLES[name]

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(list(places(row))),
        TEXTS | VALUES,
        st.sampled_from(["in place", "after", "new key"]),
        KEYS,
        IGNORED,
    )
    def replaced(path, value, how, key, ignore):
        old = at(row, path)
        if how == "after" and isinstance(old, str) and isinstance(value, str):
            value = old + value
        check(changed(row, path, value, key=key if how == "new key" else None), kinds, ignore=ignore)

    replaced()
