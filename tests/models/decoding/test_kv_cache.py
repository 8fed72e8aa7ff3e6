"""The key-value cache: each row's own tokens, whatever joins, leaves and moves, within a budget."""

import random

import pytest
import torch
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding import kv_cache as module
from raytune_llm.models.decoding.kv_cache import COLUMN_STEP, CacheBudget, KVCache, columns_to_read, power_of_two

HEADS, SIZE, LAYERS = 2, 3, 2
TOKEN_BYTES = LAYERS * 2 * HEADS * SIZE * 4


def filled(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache()
    for layer in range(LAYERS):
        keys, values = torch.randn(2, len(lengths), HEADS, max(lengths), SIZE, generator=generator)
        cache.update(keys, values, layer)
    return cache


def tokens(rows, columns):
    """Bytes of a cache of that size."""
    return rows * columns * TOKEN_BYTES


def made(max_rows, budget_bytes=None):
    return KVCache(filled([1]), CacheBudget(budget_bytes or tokens(64, 4096)), max_rows=max_rows)


def test_each_row_keeps_its_own_tokens_through_growth_moves_and_departures():
    draw = random.Random(0)
    kv_cache, expected_rows = made(4, tokens(4, 600)), []
    sizes = set()
    for turn in range(800):
        action = draw.random()
        if action < 0.08 and len(expected_rows) < 4:
            lengths = [draw.choice((1, 5, 40, 200)) for _ in range(draw.randint(1, 4 - len(expected_rows)))]
            cache = filled(lengths, turn)
            if draw.random() < 0.5:  # a row that isn't finite spoils no other
                cache.layers[0].keys[-1] = float("nan")
            kv_cache.insert(cache, lengths, [length + 30 for length in lengths])
            for row, length in enumerate(lengths):
                expected_rows.append([layer.keys[row, :, :length] for layer in cache.layers])
        elif action < 0.12 and expected_rows:
            row = draw.randrange(len(expected_rows))
            kv_cache.drop(row)
            kv_cache.shrink()
            expected_rows[row] = expected_rows[-1]
            expected_rows.pop()
        elif expected_rows and max(kv_cache.lengths) < 590:
            columns = max(kv_cache.lengths) + 1
            kv_cache.reserve(len(expected_rows), columns)
            kv_cache.begin(torch.tensor(kv_cache.lengths)[:, None], columns)
            for index in range(LAYERS):
                new = torch.randn(len(expected_rows), HEADS, 1, SIZE)
                keys, _ = kv_cache.cache.update(new, 2 * new, index)
                assert keys.shape == (len(expected_rows), HEADS, columns, SIZE)
                for row, one in zip(expected_rows, new, strict=True):
                    row[index] = torch.cat([row[index], one], dim=1)
            kv_cache.advance()
        sizes.add((kv_cache.rows, kv_cache.columns))
        assert kv_cache.held_bytes <= tokens(4, 600 + COLUMN_STEP)
        for row, layers in enumerate(expected_rows):
            assert kv_cache.lengths[row] == layers[0].shape[1]
            for layer, expected in zip(kv_cache.cache.layers, layers, strict=True):
                length = expected.shape[1]
                torch.testing.assert_close(layer.keys[row, :, :length], expected, rtol=0, atol=0, equal_nan=True)
                assert not expected.isfinite().all() or layer.keys[row, :, length:].isfinite().all()
    assert len(sizes) > 5


def test_buffers_are_powers_of_two_until_the_budget_is_short():
    roomy, tight = made(8), made(8, tokens(3, 3 * COLUMN_STEP))
    for kv_cache in (roomy, tight):
        kv_cache.insert(filled([1, 260, 7]), [1, 260, 7], [300, 300, 300])
    assert (roomy.rows, roomy.columns) == (4, 512)
    assert (tight.rows, tight.columns) == (3, 3 * COLUMN_STEP)
    assert roomy.wide_rows(3) == 4 and tight.wide_rows(3) == 3
    assert [power_of_two(number) for number in (1, 2, 3, 4, 5, 129)] == [1, 2, 4, 4, 8, 256]
    tokens_and_columns = {1: 128, 128: 128, 129: 256, 257: 384, 512: 512, 513: 768, 769: 1024, 1025: 1536, 4000: 4096}
    assert {tokens: columns_to_read(tokens) for tokens in tokens_and_columns} == tokens_and_columns


def test_what_a_long_answer_needed_is_given_back():
    kv_cache = made(8, tokens(8, 4096))
    kv_cache.insert(filled([4, 4000]), [4, 4000], [50, 4050])
    large = kv_cache.held_bytes
    kept = kv_cache.cache.layers[0].keys[0, :, :4].clone()
    kv_cache.drop(1)
    kv_cache.shrink()
    assert kv_cache.held_bytes == tokens(1, COLUMN_STEP) and large == tokens(2, 4096)
    assert torch.equal(kv_cache.cache.layers[0].keys[0, :, :4], kept)


def test_a_small_cache_stays_when_it_is_idle():
    kv_cache = made(8)
    kv_cache.insert(filled([4] * 8), [4] * 8, [50] * 8)
    version = kv_cache.version
    for _ in range(8):
        kv_cache.drop(0)
        kv_cache.shrink()
    assert kv_cache.version == version and kv_cache.rows == 8


def test_rows_join_while_the_budget_has_room_for_all_that_they_may_become():
    kv_cache = made(8, tokens(4, COLUMN_STEP))
    assert kv_cache.longest == 4 * COLUMN_STEP
    assert kv_cache.has_room(4 * COLUMN_STEP) and not kv_cache.has_room(4 * COLUMN_STEP + 1)
    kv_cache.insert(filled([5, 5]), [5, 5], [100, COLUMN_STEP])
    assert kv_cache.has_room(COLUMN_STEP)
    assert not kv_cache.has_room(COLUMN_STEP + 1)  # three rows of two column steps
    kv_cache.promised.append(COLUMN_STEP)
    assert kv_cache.has_room(1)
    kv_cache.promised.append(1)
    assert not kv_cache.has_room(1)


def test_caches_share_a_budget_and_idle_ones_give_way():
    budget = CacheBudget(tokens(4, COLUMN_STEP))
    one, two = (KVCache(filled([1]), budget, max_rows=4) for _ in range(2))
    one.insert(filled([5, 5, 5]), [5, 5, 5], [9, 9, 9])
    assert one.held_bytes == tokens(4, COLUMN_STEP) and not two.has_room(9)
    for _ in range(3):
        one.drop(0)
    assert two.has_room(9) and one.held_bytes == 0
    del one
    assert two.has_room(4 * COLUMN_STEP)


@pytest.mark.parametrize("failing", range(2 * LAYERS))
def test_a_cache_that_can_not_grow_keeps_its_rows(monkeypatch, failing):
    kv_cache = made(4)
    kv_cache.insert(filled([100, 7], 1), [100, 7], [300, 300])
    before = [layer.keys[:2, :, :100].clone() for layer in kv_cache.cache.layers]
    calls, resized = iter(range(100)), module._resized

    def short_of_memory(*args):
        if next(calls) == failing:
            raise torch.OutOfMemoryError("no memory")
        return resized(*args)

    monkeypatch.setattr(module, "_resized", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        kv_cache.insert(filled([200, 3], 2), [200, 3], [300, 300])
    assert kv_cache.lengths == [100, 7] and kv_cache.columns == COLUMN_STEP
    kv_cache.drop(1)
    kv_cache.reserve(1, 101)
    kv_cache.begin(torch.tensor([[100]]), 101)
    new = torch.ones(1, HEADS, 1, SIZE)
    for index, expected in enumerate(before):
        keys, _ = kv_cache.cache.update(new, new, index)
        assert torch.equal(keys, torch.cat([expected[:1], new], dim=2))
