"""Text as it comes: whole characters, nothing lost, nothing after a stop string."""

import random
import time

import pytest
from serving_world import byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from raytune_llm.serving.engine import detokenize
from raytune_llm.serving.engine.detokenize import (
    REPLACEMENT,
    ByteLevelDetokenizer,
    WindowDetokenizer,
    decode,
    make_detokenizer,
)
from raytune_llm.serving.engine.stop_strings import StopStrings

TEXTS = ["naïve café 😀😀 日本語 done", " leading space", "a", "", "é", "two  spaces.  end ", "😀"]


@pytest.fixture(
    params=[byte_level_tokenizer, byte_fallback_tokenizer, ByT5Tokenizer],
    ids=["byte_level", "byte_fallback", "python"],
    scope="module",
)
def tokenizer(request):
    return request.param()


def pieces(tokenizer, ids):
    detokenizer = make_detokenizer(tokenizer)
    return [*(detokenizer.add(index) for index in ids), detokenizer.flush()]


def test_bytes_are_decoded_as_they_come_where_tokens_are_bytes():
    assert isinstance(make_detokenizer(byte_level_tokenizer()), ByteLevelDetokenizer)
    assert isinstance(make_detokenizer(byte_fallback_tokenizer()), WindowDetokenizer)
    assert isinstance(make_detokenizer(ByT5Tokenizer()), WindowDetokenizer)


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
    for _ in range(500):
        ids = draw.choices(range(len(tokenizer)), k=draw.randint(0, 40))
        assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


def test_bytes_of_an_unfinished_character_come_at_the_end_as_replacements(tokenizer):
    ids = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == decode(tokenizer, ids)
    assert not any(REPLACEMENT in part for part in parts[:-1])


def test_kept_tokens_come_with_the_next_text_or_at_the_end(tokenizer):
    ids = tokenizer.encode("naïve café 😀", add_special_tokens=False)
    for places in ([0, 1, 4], range(len(ids)), range(3, len(ids))):
        detokenizer, text = make_detokenizer(tokenizer), ""
        for place, index in enumerate(ids):
            text += detokenizer.keep(index) or "" if place in places else detokenizer.add(index)
        assert text + detokenizer.flush() == "naïve café 😀"


def test_a_decoder_that_changes_earlier_text_does_not_end_the_answer():
    """What was given out stays, and the rest comes."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "?": 3}, unk_token="?"))
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")])
    parts = pieces(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"), [0, 1, 2, 2])
    assert parts == ["a", "", "c", "c", ""]


def test_special_tokens_are_left_out_and_keep_the_space_after_them(tokenizer):
    words = [tokenizer.encode(word, add_special_tokens=False) for word in ("one", " two")]
    ids = [*words[0], tokenizer.eos_token_id, *words[1]]
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


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("stop", ["x" * 100_000, "x" * 100_000 + "y", "xy" * 50_000 + "z"])
def test_long_stop_strings_take_time_linear_in_the_text(stop):
    """Quadratic, this takes minutes."""
    stops, shown = StopStrings((stop,) * 4), []

    def feed():
        shown.extend(stops.add("xy" if stop[1] == "y" else "xx")[0] for _ in range(20_000))
        shown.append(stops.flush())

    assert seconds(feed) < 5
    assert len("".join(shown)) == 40_000


def test_a_stop_string_that_repeats_itself_is_found_after_a_broken_beginning():
    stop = StopStrings(("aab",))
    assert [stop.add(part) for part in ("aa", "a", "a", "b")] == [("", False), ("a", False), ("a", False), ("", True)]


@pytest.mark.parametrize("kind", ["part of a character", "special", "replacement character"])
def test_answers_without_text_take_time_linear_in_their_tokens(tokenizer, monkeypatch, kind):
    """Counts the tokens that are decoded: quadratic, they are millions."""
    numbers = []
    monkeypatch.setattr(
        detokenize, "decode", lambda tokenizer, tokens: numbers.append(len(tokens)) or decode(tokenizer, tokens)
    )
    first = tokenizer.encode("a😀", add_special_tokens=False)
    odd = {
        "part of a character": first[-2],
        "special": tokenizer.eos_token_id,
        "replacement character": (tokenizer.encode(REPLACEMENT, add_special_tokens=False) or [0])[-1],
    }
    ids = [first[0], *[odd[kind]] * 4000]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)
    assert sum(numbers) < 40 * len(ids)


def test_text_after_many_broken_characters_comes_as_it_is_generated(tokenizer):
    broken = tokenizer.encode("😀", add_special_tokens=False)[-2:-1] * 50
    ids = [*broken, *tokenizer.encode("then text.", add_special_tokens=False)]
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == decode(tokenizer, ids)
    assert "text" in "".join(parts[:-1])
