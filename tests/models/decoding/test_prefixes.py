"""Beginnings of prompts that were read before: found, bounded, and the same as read anew."""

import pytest
import torch
from serving_world import make_base
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding import prefixes as prefixes_module
from raytune_llm.models.decoding.kv_cache import LENT_SHARE, CacheBudget, KVCache
from raytune_llm.models.decoding.prefixes import BLOCK_TOKENS, PrefixCache, cache_of
from raytune_llm.models.decoding.prompts import PromptReading, read_prompts, read_token


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base")).load().eval()


def prompt(length, seed=0):
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def block_bytes(model):
    return BLOCK_TOKENS * KVCache(read_token(model), CacheBudget(1), max_rows=1).token_bytes


def test_a_prompt_read_in_chunks_after_a_known_beginning_is_the_prompt_read_whole(model):
    prefixes = PrefixCache(CacheBudget(1 << 30))
    first = prompt(3 * BLOCK_TOKENS + 5)
    second = first[: 2 * BLOCK_TOKENS + 9] + prompt(BLOCK_TOKENS, seed=1)
    with torch.inference_mode():
        filled, expected = read_prompts(model, None, [second], [None])
        cache, _ = read_prompts(model, None, [first], [None])
        prefixes.keep(None, first, cache, 0, len(first))
        known = prefixes.find(None, second)
        assert len(known) == 2
        reading = PromptReading(model, None, [second], [None], cache_of([known]))
        assert [reading.read(30) is None for _ in range(2)] == [True, True]
        assert reading.num_read == 2 * BLOCK_TOKENS + 60
        logits = reading.read(30)
    assert torch.allclose(logits, expected, atol=1e-4)
    for read, whole in zip(reading.cache.layers, filled.layers, strict=True):
        assert torch.allclose(read.keys, whole.keys, atol=1e-5) and torch.allclose(read.values, whole.values, atol=1e-5)


def test_all_logits_of_a_prompt_come_by_chunks(model):
    found, ids = {}, prompt(40)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
        reading = PromptReading(
            model, None, [ids], [None], on_logits=lambda start, logits: found.setdefault(start, logits)
        )
        while (last := reading.read(16)) is None:
            pass
    assert list(found) == [0, 16, 32]
    assert torch.allclose(torch.cat(list(found.values())), expected, atol=1e-4)
    assert torch.equal(last[0], found[32][-1])


def test_a_last_token_is_always_left_to_read_and_owners_do_not_mix():
    prefixes, ids = PrefixCache(CacheBudget(1 << 30)), prompt(2 * BLOCK_TOKENS)
    prefixes.keep("a", ids, made_cache(2 * BLOCK_TOKENS), 0, 2 * BLOCK_TOKENS)
    assert len(prefixes.find("a", ids)) == 1
    assert len(prefixes.find("a", [*ids, 5])) == 2
    assert prefixes.find("b", [*ids, 5]) == prefixes.find(None, [*ids, 5]) == []
    prefixes.forget("a")
    assert prefixes.find("a", [*ids, 5]) == [] and prefixes.held_bytes == 0


def made_cache(length, rows=1):
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(rows, 1, length, 4), torch.randn(rows, 1, length, 4), layer)
    return cache


def test_one_long_prompt_takes_half_the_room_and_copies_nothing_that_has_none(monkeypatch):
    each, copied = made_cache(BLOCK_TOKENS).layers[0].keys.nbytes * 4, []
    prefixes = PrefixCache(CacheBudget(int(8 * each / LENT_SHARE)))
    hot = [prompt(2 * BLOCK_TOKENS, seed) for seed in (1, 2)]
    for ids in hot:
        prefixes.keep(None, ids, made_cache(len(ids)), 0, len(ids))
    real = prefixes_module._copied
    monkeypatch.setattr(prefixes_module, "_copied", lambda *given: copied.append(1) or real(*given))
    for seed in (3, 4):
        long, read = prompt(20 * BLOCK_TOKENS, seed), made_cache(20 * BLOCK_TOKENS)
        for num_read in (3 * BLOCK_TOKENS, 12 * BLOCK_TOKENS, 20 * BLOCK_TOKENS):
            prefixes.keep(None, long, read, 0, num_read)
        assert len(prefixes.find(None, long)) == 4 and prefixes.held_bytes == 8 * each
        found = [len(prefixes.find(None, [*ids, 5])) for ids in hot]
        assert found == [2, 2]
        assert len(copied) == 4 * (seed - 2)


def test_blocks_take_a_share_of_the_budget_and_give_way_to_answers(model):
    each = block_bytes(model)
    budget = CacheBudget(16 * each)
    prefixes, answers = PrefixCache(budget), KVCache(read_token(model), budget, max_rows=8)
    prompts = [prompt(2 * BLOCK_TOKENS + 1, seed) for seed in range(4)]
    with torch.inference_mode():
        for ids in prompts:
            cache, _ = read_prompts(model, None, [ids], [None])
            prefixes.keep(None, ids, cache, 0, len(ids))
            assert prefixes.held_bytes <= 16 * each * LENT_SHARE
    assert [len(prefixes.find(None, ids)) for ids in prompts] == [0, 0, 2, 2]
    prefixes.find(None, prompts[2])
    answers.promised.append(13 * BLOCK_TOKENS)  # 14 blocks in whole steps of columns
    budget.collect()
    assert prefixes.held_bytes == 2 * each
    assert [len(prefixes.find(None, ids)) for ids in prompts] == [0, 0, 2, 0]
    answers.promised.append(2 * BLOCK_TOKENS)
    budget.collect()
    assert prefixes.held_bytes == 0
