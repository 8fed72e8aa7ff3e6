"""Sizes of chunks by a clock that the tests set."""

import pytest

from raytune_llm.serving.engine.chunk_sizes import (
    ALONE_SECONDS,
    ATTENTION_TOKENS,
    CHUNK_SECONDS,
    DOUBLED_BELOW,
    MIN_CHUNK_TOKENS,
    SizesByPlace,
    SizesByTime,
)


class Reader:
    """Reads at so many seconds a token."""

    def __init__(self, most, seconds_per_token):
        self.now, self.seconds_per_token = 0.0, seconds_per_token
        self.sizes = SizesByTime(most, clock=lambda: self.now)

    def read(self, num_tokens=None, *, is_alone=False, is_long=True):
        """A chunk, or so many tokens; the tokens and seconds."""
        num_tokens = num_tokens or self.sizes.most_tokens(0, is_alone=is_alone)
        self.sizes.begin()
        seconds = num_tokens * self.seconds_per_token
        self.now += seconds
        self.sizes.end(num_tokens, is_long=is_long, is_alone=is_alone)
        return num_tokens, seconds


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize("seconds_per_token", [0.0001, 0.001, 0.003])
def test_chunks_soon_take_no_longer_than_allowed_and_not_much_less(seconds_per_token, is_alone):
    reader = Reader(512, seconds_per_token)
    chunks = [reader.read(is_alone=is_alone) for _ in range(20)][5:]
    allowed = ALONE_SECONDS if is_alone else CHUNK_SECONDS
    assert len(set(chunks)) == 1
    tokens, seconds = chunks[0]
    assert seconds <= allowed
    assert tokens == 512 or seconds >= DOUBLED_BELOW * allowed


def test_chunks_are_neither_smaller_than_is_of_use_nor_larger_than_configured():
    slow, fast, small = Reader(512, 1.0), Reader(512, 0.0), Reader(20, 1.0)
    for reader, least in ((slow, MIN_CHUNK_TOKENS), (fast, 512), (small, 20)):
        assert [reader.read()[0] for _ in range(9)][-1] == least


def test_whole_prompts_enlarge_chunks_and_owe_nothing():
    reader = Reader(512, 0.0001)
    first = reader.sizes.most_tokens(0, is_alone=False)
    reader.read(first // 2 - 1, is_long=False)
    assert reader.sizes.most_tokens(0, is_alone=False) == first
    reader.read(first // 2, is_long=False)
    assert reader.sizes.most_tokens(0, is_alone=False) == 2 * first
    reader.sizes.begin()
    assert reader.sizes.is_due


def test_after_a_chunk_answers_get_as_much_time():
    reader = Reader(512, 0.001)
    _, seconds = reader.read()
    due = []
    for _ in range(4):
        reader.now += 0.3 * seconds
        reader.sizes.begin()
        due.append(reader.sizes.is_due)
    assert due == [False, False, False, True]


def test_reading_whole_prompts_is_no_time_of_running_answers():
    reader = Reader(512, 0.001)
    _, seconds = reader.read()
    reader.read(1000, is_long=False)
    reader.sizes.begin()
    assert not reader.sizes.is_due
    reader.now += 1.01 * seconds
    reader.sizes.begin()
    assert reader.sizes.is_due


def test_sizes_by_place_shrink_as_attention_grows():
    sizes = SizesByPlace(2048)
    found = [sizes.most_tokens(read, is_alone=False) for read in (0, ATTENTION_TOKENS, 3 * ATTENTION_TOKENS, 10**9)]
    assert found == [2048, 1024, 512, MIN_CHUNK_TOKENS]
    assert sizes.is_due
