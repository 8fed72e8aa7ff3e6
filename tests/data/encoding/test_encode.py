"""Records and their examples stay together, through what is added to the examples and what is drawn of them."""

import random

import pytest
from test_doctor import encode, numbered, splits, words
from worlds import tokenizer

from raytune_llm.data.encoding.encode import draw_indices, encode_split, encode_splits
from raytune_llm.data.examples import IGNORED
from raytune_llm.data.records import Chat, Message, Supervised
from raytune_llm.data.tokenizing.tokens import Tokens, Truncation

LONG = Chat((Message("user", "1 " * 9), Message("assistant", "yes")))
"""Nothing is left of it in 10 tokens."""


def test_each_record_keeps_its_example():
    tokens = words(10)
    found = encode_split("train", [*numbered(2), LONG, *numbered(1, 2)], tokens, encode)
    assert found.encoded[2] is None and len(found.examples) == 3
    assert [(record, example) for record, example in found.pairs()] == [
        (record, encode(record, tokens)) for record in numbered(3)
    ]
    assert found.truncation.records == 4 and found.truncation.dropped == 1


def test_splits_are_encoded_apart_and_empty_ones_left_out():
    tokens = words()
    found = encode_splits(splits(numbered(5), numbered(2, 5)), tokens, encode)
    assert [name for name, _ in found.items()] == ["train", "eval"] and found.test.examples == []
    assert found.eval.examples == [encode(record, tokens) for record in numbered(2, 5)]
    assert (found.max_tokens, found.is_encoder_decoder) == (64, False)


def test_examples_are_replaced_in_their_places():
    found = encode_split("train", [*numbered(1), LONG, *numbered(1, 1)], words(10), encode)
    first, last = found.examples
    replaced = found.with_examples([last, first])
    assert replaced.encoded == [last, None, first] and replaced.records == found.records
    with pytest.raises(ValueError, match="1 examples given for the 2 of the split"):
        found.with_examples([{"completion": 1}])
    with pytest.raises(ValueError, match="3 examples given"):
        found.with_examples([{}, {}, {}])


def test_a_draw_is_seeded_and_repeats_itself():
    found = encode_split("eval", [*numbered(9), LONG], words(10), encode)
    drawn = found.drawn(6, seed=3)
    assert drawn.records == random.Random(3).sample(found.records, 6)
    assert drawn.drawn(6, seed=3) is drawn, "a draw of as many is that draw"
    assert drawn.pairs() == [pair for record in drawn.records for pair in found.pairs() if pair[0] == record]
    assert found.drawn(None, seed=3) is found is found.drawn(10, seed=3)


def test_the_drawn_records_alone_can_be_encoded():
    tokens, records, seen = words(), numbered(9), []

    def watched(record, tokens):
        seen.append(record)
        return encode(record, tokens)

    found = encode_split("test", records, tokens, watched, draw_indices(9, 4, seed=1))
    whole = encode_split("test", records, tokens, encode).drawn(4, seed=1)
    assert (found.records, found.encoded) == (whole.records, whole.encoded) and found.records == seen
    assert found.truncation.records == 4


def test_the_tokenizers_own_count_is_left_alone():
    tokens = words()
    tokens.truncation.records = 7
    encode_split("train", numbered(5), tokens, encode)
    assert tokens.truncation == Truncation(records=7)


def test_records_that_can_not_be_encoded_are_named():
    tokens = words()
    tokens.tokenizer.chat_template = "{{ raise_exception('no') }}"
    chat = Chat((Message("user", "1"), Message("assistant", "2")))
    refusal = "the chat template refuses a conversation of the turns"
    with pytest.raises(ValueError, match=rf"data\.train, record 2: {refusal}"):
        encode_splits(splits([*numbered(1), chat]), tokens, encode)
    with pytest.raises(ValueError, match=rf"data\.test, record 3: {refusal}"):
        encode_split("test", [*numbered(2), chat, Supervised("a", "b")], tokens, encode, [3, 2])


def test_no_records_are_no_examples():
    tokens = Tokens(words().tokenizer, max_tokens=None, is_encoder_decoder=False)
    assert encode_split("test", [], tokens, encode).pairs() == []


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_bytes_of_targets_are_those_of_their_text_without_the_end(is_encoder_decoder):
    tokens = Tokens(tokenizer(), max_tokens=64, is_encoder_decoder=is_encoder_decoder)
    answers = ["red", "grün", "one two three", ""]
    records = [Supervised("what", answer) for answer in answers]

    def encode(record, tokens):
        return {"completion": tokens.completion(record.prompt, record.completion)}

    found = encode_split("eval", records, tokens, encode)
    assert [example["completion"].num_bytes for example in found.examples] == [3, 5, 13, 0]
    drawn = found.drawn(3, seed=1)
    assert drawn.examples.num_bytes().tolist() == [len(record.completion.encode()) for record in drawn.records]
    both = encode_splits(splits(records, records), tokens, encode)
    assert both.train.examples.num_bytes() is None and both.eval.examples.num_bytes().sum() == 21


def test_bytes_are_of_what_truncation_leaves():
    tokens = Tokens(tokenizer(), max_tokens=8, is_encoder_decoder=False)
    found = encode_split(
        "eval",
        [Supervised("a", "x" * 20)],
        tokens,
        lambda record, tokens: {"completion": tokens.completion(record.prompt, record.completion)},
    )
    [example] = found.examples
    assert example["completion"].num_bytes == sum(label != IGNORED for label in example["completion"].labels) < 8
