"""Answers wait for room in the cache, and running out of memory ends one of them, not the engine."""

import asyncio
import dataclasses

import pytest
import torch
from serving_world import ENGINE, make_base, write_adapter
from test_batch import GREEDY, answer, drawn_prompts, served

from raytune_llm.errors import InputError
from raytune_llm.models.decoding import prompts as prompts_module
from raytune_llm.models.decoding.kv_cache import COLUMN_STEP

LONG = dataclasses.replace(GREEDY, max_tokens=100)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    models = [served(base, "base", "base", None)]
    models += [
        served(base, f"a{seed}", "adapter", write_adapter(base, root / f"a{seed}", seed=seed, rank=rank))
        for seed, rank in ((1, 2), (2, 4), (3, 4))
    ]
    prompts = drawn_prompts(10, 20, 300)
    work = [(models[i % 3].id, prompt, LONG if i == 4 else GREEDY) for i, prompt in enumerate(prompts)]
    engine = loaded(base, models)
    token_bytes = engine._resident._batch.rows[0].kv_cache.token_bytes
    expected = [asyncio.run(answer(engine, *item)) for item in work]
    engine.close()
    return base, models, work, expected, token_bytes


def loaded(base, models, **changed):
    engine = dataclasses.replace(ENGINE, **changed).load(base, max_running=6)
    for model in models:
        engine.add(model)
    return engine


def all_at_once(engine, work):
    async def together():
        return await asyncio.gather(*(answer(engine, *item) for item in work), return_exceptions=True)

    return asyncio.run(together())


def test_answers_wait_until_the_cache_has_room_for_them(world):
    base, models, work, expected, token_bytes = world
    limit = 2 * COLUMN_STEP * token_bytes
    engine = loaded(base, models, cache_bytes=limit)
    kv_cache = engine._resident._batch.rows[0].kv_cache
    seen, advance = [], kv_cache.advance

    def watched():
        seen.append((kv_cache.num_rows, kv_cache.held_bytes))
        advance()

    kv_cache.advance = watched
    assert all_at_once(engine, work) == expected
    assert max(rows for rows, _ in seen) == 2 and max(held for _, held in seen) == limit
    engine.close()


def test_an_answer_that_can_never_fit_is_refused_with_the_key(world):
    base, models, work, expected, token_bytes = world
    engine = loaded(base, models, cache_bytes=COLUMN_STEP * token_bytes)
    assert engine.longest_answer("a1") == COLUMN_STEP
    with pytest.raises(InputError, match=r"101 tokens and max_tokens=100 .* 128 tokens that serve\.engine\.cache"):
        asyncio.run(answer(engine, "a1", [5] * 101, LONG))
    assert all_at_once(engine, work[:2]) == expected[:2]
    assert engine.num_running == 0
    engine.close()


def test_a_step_without_memory_ends_the_longest_answer(world, caplog):
    base, models, work, expected, _ = world
    engine = loaded(base, models)
    rows = engine._resident._batch.rows[0]
    step, calls, longest = rows.decoding, [], []
    logits = step.logits

    def short_of_memory():
        calls.append(1)
        if len(calls) in (3, 5):
            pairs = zip(rows.kv_cache.lengths, rows._rows, strict=True)
            longest.append(sorted(pairs, key=lambda pair: pair[0])[-1][1].request.prompt)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits()

    step.logits = short_of_memory
    found = all_at_once(engine, work)
    failed = [i for i, text in enumerate(found) if isinstance(text, Exception)]
    assert len(failed) == 2 and "the longest is evicted" in caplog.text
    assert all("lower serve.engine.cache_bytes" in str(found[i].__cause__) for i in failed)
    assert sorted(work[i][1] for i in failed) == sorted(longest)
    assert [found[i] for i in range(10) if i not in failed] == [expected[i] for i in range(10) if i not in failed]
    assert all_at_once(engine, work) == expected
    assert not engine._resident.adapter_cache._users
    engine.close()


@pytest.mark.parametrize("most_rows", [1, 2, 3])
def test_prompts_that_are_too_many_at_once_are_read_in_parts(world, monkeypatch, most_rows):
    base, models, work, expected, _ = world
    engine, forward, read = loaded(base, models), prompts_module.forward, []

    def short_of_memory(model, adapters, route, ids, *rest):
        if len(ids) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        read.append(len(ids))
        return forward(model, adapters, route, ids, *rest)

    monkeypatch.setattr(prompts_module, "forward", short_of_memory)
    assert all_at_once(engine, work) == expected
    assert max(read) <= most_rows and sum(read) == len(work)
    engine.close()


def test_a_prompt_that_finds_no_memory_ends_only_its_own_answer(world, monkeypatch):
    base, models, work, expected, _ = world
    engine, forward = loaded(base, models), prompts_module.forward
    prompt = work[7][1]

    def short_of_memory(model, adapters, route, ids, *rest):
        if any(row[: len(prompt)] == prompt for row in ids.tolist()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, adapters, route, ids, *rest)

    monkeypatch.setattr(prompts_module, "forward", short_of_memory)
    found = all_at_once(engine, work)
    assert isinstance(found.pop(7), RuntimeError)
    assert found == expected[:7] + expected[8:]
    engine.close()


def test_an_adapter_that_finds_no_memory_leaves_the_others(world, tmp_path, monkeypatch):
    base, models, work, expected, _ = world
    engine = loaded(base, models)
    wide = served(base, "wide", "adapter", write_adapter(base, tmp_path / "wide", seed=9, rank=16))
    cache = engine._resident.adapter_cache
    build = cache._build

    def short_of_memory(names, lora_rank, kept):
        if lora_rank > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        build(names, lora_rank, kept)

    monkeypatch.setattr(cache, "_build", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        engine.add(wide)
    assert all_at_once(engine, work) == expected
    engine.close()


@pytest.mark.parametrize("place", ["step", "prompt"])
def test_a_lost_device_ends_the_engine_so_that_the_replica_is_replaced(world, monkeypatch, place):
    base, models, work, _, _ = world
    engine = loaded(base, models)

    def lost(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    if place == "step":
        engine._resident._batch.rows[0].decoding.logits = lost
    else:
        monkeypatch.setattr(prompts_module, "forward", lost)
    found = all_at_once(engine, work[:3])
    assert all(isinstance(error, RuntimeError) for error in found)
    engine._thread.join(10)
    with pytest.raises(RuntimeError, match="decoding thread has ended"):
        engine.check_health()
