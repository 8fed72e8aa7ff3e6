"""Ids by the library beneath transformers are transformers' own, and a text falls apart at its special tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_doctor import words
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raytune_llm.data.demo import path
from raytune_llm.data.tokenizing.token_ids import begin_of_part, ids_and_offsets, splitting_tokens, token_ids

SPECIAL = ["<|start|>", "<|end|>"]
TEXTS = st.lists(
    st.sampled_from([*SPECIAL, "a", " ", "  ", "\n", "ab c", " Ünï", "<|", "assistant\n", "12"]), max_size=12
)


def trained(pre_tokenizer, normalizer=None):
    """A BPE tokenizer with two special tokens."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    inner.train_from_iterator(["ab c assistant 12 Ünï ab ab assistant\n\n  a"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=SPECIAL[1], unk_token="<unk>")


LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "bytes": trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, prefix": trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace, first": trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace, always": trained(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "prepended": trained(pre_tokenizers.Split("\n", "isolated"), LLAMA2),
    "nfc": trained(pre_tokenizers.Whitespace(), normalizers.NFC()),
    "demo": AutoTokenizer.from_pretrained(path("base")),
    "words": words().tokenizer,
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(parts=TEXTS, end=st.integers(0, 40))
def test_ids_are_those_of_transformers(name, parts, end):
    tokenizer, text = TOKENIZERS[name], "".join(parts)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = ids_and_offsets(tokenizer, text)
    assert ids == found["input_ids"] == token_ids(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False)
    assert list(offsets) == [tuple(pair) for pair in found["offset_mapping"]]
    for i in range(1, len(ids)):
        last = begin_of_part(splitting_tokens(tokenizer), text, ids[: i + 1], offsets)
        if last and (cut := offsets[i][1] + end) <= len(text):
            assert token_ids(tokenizer, text[:cut]) == ids[:last] + token_ids(tokenizer, text[offsets[last][0] : cut])


def test_special_tokens_split_a_text_and_unknown_words_do_not():
    tokenizer = TOKENIZERS["metaspace, first"]
    splitting = splitting_tokens(tokenizer)
    assert list(splitting.values()) == ["<unk>", *SPECIAL]
    for text, part in (
        ("a<|end|>b|c", "<|end|>b|c"),
        ("a|b", "a|b"),
        ("<|end|>a", "<|end|>a"),
        ("a<|start|>", "<|start|>"),
    ):
        ids, offsets = ids_and_offsets(tokenizer, text)
        begin = begin_of_part(splitting, text, ids, offsets)
        assert (text[offsets[begin][0] :] if begin else text) == part


def test_what_was_set_for_training_does_not_matter():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    whole = token_ids(tokenizer, "ab c assistant <|end|>")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert (
        token_ids(tokenizer, "ab c assistant <|end|>")
        == whole
        == ids_and_offsets(tokenizer, "ab c assistant <|end|>")[0]
    )


class Slow:
    """A tokenizer in Python."""

    def encode(self, text, *, add_special_tokens, verbose):
        return [ord(c) for c in text]

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping, verbose):
        return {"input_ids": self.encode(text, add_special_tokens=False, verbose=False), "offset_mapping": [(0, 1)]}


def test_a_tokenizer_without_the_library_is_asked_itself():
    assert token_ids(Slow(), "a") == [97] and ids_and_offsets(Slow(), "a") == ([97], [(0, 1)])
    assert splitting_tokens(Slow()) == {}
