"""Text as it comes: whole characters, nothing lost, nothing after a stop string."""

import random

import pytest
from serving_world import byte_fallback_tokenizer, byte_level_tokenizer

from raytune_llm.serving.engine.detokenize import REPLACEMENT, Detokenizer, StopStrings, decode

TEXTS = ["naïve café 😀😀 日本語 done", " leading space", "a", "", "é", "two  spaces.  end ", "😀"]


@pytest.fixture(
    params=[byte_level_tokenizer, byte_fallback_tokenizer], ids=["byte_level", "byte_fallback"], scope="module"
)
def tokenizer(request):
    return request.param()


def pieces(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(index) for index in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_joined_pieces_are_the_text_and_no_piece_holds_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == decode(tokenizer, ids) == text
    assert not any(REPLACEMENT in part for part in parts)


def test_text_comes_before_the_end(tokenizer):
    ids = tokenizer.encode("several words. and more of them", add_special_tokens=False)
    assert sum(bool(part) for part in pieces(tokenizer, ids)) > len(ids) / 2


def test_random_tokens_decode_to_the_same_text_as_all_at_once(tokenizer):
    draw = random.Random(0)
    plain = [index for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids]
    for _ in range(200):
        ids = draw.choices(plain, k=draw.randint(0, 40))
        assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


def test_special_tokens_are_left_out_and_keep_the_space_after_them(tokenizer):
    words = [tokenizer.encode(word, add_special_tokens=False) for word in ("one", " two")]
    ids = [*words[0], tokenizer.bos_token_id, *words[1]]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


def cut(text, stops):
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def test_stop_strings_cut_wherever_the_pieces_fall():
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab\n", k=draw.randint(0, 12)))
        stops = tuple("".join(draw.choices("ab\n", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3)))
        stop, shown, stopped, rest = StopStrings(stops), "", False, text
        while rest and not stopped:
            size = draw.randint(1, 4)
            part, stopped = stop.add(rest[:size])
            shown, rest = shown + part, rest[size:]
        shown += "" if stopped else stop.flush()
        # pieces that hold two stop strings end at the first of them, as the whole text would
        assert (shown, stopped) == cut(text[: len(text) - len(rest)], stops)


def test_only_what_could_begin_a_stop_string_is_kept_back():
    stop = StopStrings(("END",))
    assert stop.add("abc") == ("abc", False)
    assert stop.add("xE") == ("x", False)
    assert stop.add("N!") == ("EN!", False)
    assert stop.add("E") == ("", False)
    assert stop.flush() == "E"
