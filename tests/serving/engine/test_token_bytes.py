"""A token's bytes: those that it adds to an answer, also where they are no character yet."""

import pytest
from serving_world import byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from raytune_llm.serving.engine.token_bytes import data_of_one, decode_one

TEXT = "naïve café 😀 日本語"


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer, ByT5Tokenizer])
def test_the_bytes_of_an_answers_tokens_joined_are_its_text(make):
    tokenizer = make()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert b"".join(data_of_one(tokenizer, token) for token in ids).decode().removeprefix(" ") == TEXT
    smile = tokenizer.encode("😀", add_special_tokens=False)
    assert [data_of_one(tokenizer, token) for token in smile[-4:]] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_special_tokens_are_named(make):
    tokenizer = make()
    assert data_of_one(tokenizer, tokenizer.eos_token_id) == b"</s>"
    assert decode_one(tokenizer, tokenizer.eos_token_id) == "</s>"


def test_words_keep_the_space_before_them_and_their_continuations_have_none():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "<0x41>": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert [data_of_one(tokenizer, token) for token in (1, 2, 3)] == [b" play", b"ing", b" <0x41>"]


def test_added_tokens_are_as_they_were_added_and_other_rows_of_the_vocabulary_are_empty():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["été!"])
    assert data_of_one(tokenizer, len(tokenizer) - 1) == "été!".encode()
    assert data_of_one(tokenizer, len(tokenizer) + 5) == b""
