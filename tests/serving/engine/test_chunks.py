"""Long prompts are read in chunks between decoding steps; what prompts have in common is read once."""

import asyncio
import dataclasses
import itertools
import threading

import pytest
import torch
from serving_world import ENGINE, make_base, write_adapter
from test_batch import GREEDY, answer, drawn_prompts, served, shaped_base

from raytune_llm.errors import InputError
from raytune_llm.models.decoding import prompts as prompts_module
from raytune_llm.serving.engine import batch as batch_module
from raytune_llm.serving.engine.base import Finish
from raytune_llm.serving.engine.chunk_sizes import SizesByPlace

CHUNK = 16


def loaded(base, models, **changed):
    engine = dataclasses.replace(ENGINE, prefill_chunk_tokens=CHUNK, **changed).load(base, max_running=6)
    for model in models:
        engine.add(model)
    return engine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    folder = write_adapter(base, root / "one", seed=1)
    return base, [served(base, "base", "base", None), served(base, "one", "adapter", folder)]


class Passes:
    """The passes that an engine makes: ("read", tokens) or ("step", rows)."""

    def __init__(self, engine, monkeypatch):
        self.seen = []
        forward = prompts_module.forward
        rows = engine._resident._batch.rows[0]
        logits = rows.decoding.logits

        def watched(model, adapters, route, ids, *rest):
            self.seen.append(("read", ids.numel()))
            return forward(model, adapters, route, ids, *rest)

        def step():
            self.seen.append(("step", len(rows)))
            return logits()

        monkeypatch.setattr(prompts_module, "forward", watched)
        rows.decoding.logits = step


def test_running_answers_wait_for_one_chunk_at_most(world, monkeypatch):
    base, models = world
    engine = loaded(base, models)
    passes = Passes(engine, monkeypatch)
    long = dataclasses.replace(GREEDY, max_tokens=200, stream=True, ignore_eos=True)

    async def together():
        stream = engine.generate("one", [5, 6, 7], long)
        await anext(stream)
        asked = [asyncio.create_task(answer(engine, "base", list(range(3, 83)), GREEDY))]
        async for _ in stream:
            pass
        await asyncio.gather(*asked)

    asyncio.run(together())
    engine.close()
    reads = [i for i, (kind, _) in enumerate(passes.seen) if kind == "read"]
    assert all(size <= CHUNK for kind, size in passes.seen if kind == "read")
    assert len(reads) == 6  # 3 tokens, then 80 by 16
    assert all(b - a > 1 for a, b in itertools.pairwise(reads[1:]))


def test_short_prompts_do_not_wait_for_a_long_one_before_them(world, monkeypatch):
    base, models = world
    engine = loaded(base, models)
    passes = Passes(engine, monkeypatch)

    async def together():
        long = asyncio.create_task(answer(engine, "base", list(range(3, 99)), GREEDY))
        await asyncio.gather(long, answer(engine, "one", [5, 6, 7], GREEDY))

    asyncio.run(together())
    engine.close()
    assert ("read", 3) in [each for each in passes.seen if each[0] == "read"][:3]


class NeverDue(SizesByPlace):
    """As if running answers had always had too little of the time."""

    is_due = False


def test_long_prompts_wait_for_the_share_of_running_answers_and_short_ones_do_not(world, monkeypatch):
    base, models = world
    engine = loaded(base, models)
    engine._resident._batch._sizes = NeverDue(CHUNK)
    passes = Passes(engine, monkeypatch)
    running = dataclasses.replace(GREEDY, max_tokens=300, stream=True, ignore_eos=True)

    async def together():
        stream = engine.generate("one", [5, 6, 7], running)
        await anext(stream)
        asked = [answer(engine, "base", list(range(3, 83)), GREEDY), answer(engine, "one", [8, 9], GREEDY)]
        tasks = [asyncio.create_task(each) for each in asked]
        async for _ in stream:
            pass
        return await asyncio.gather(*tasks)

    found = asyncio.run(together())
    engine.close()
    reads = [i for i, (kind, _) in enumerate(passes.seen) if kind == "read"]
    assert [passes.seen[i][1] for i in reads] == [3, 2, 16, 16, 16, 16, 16]
    assert all(b - a == 1 for a, b in itertools.pairwise(reads[2:]))  # no answer was running
    assert all(found)


@pytest.mark.parametrize("shape", ["tiny", "mistral_sliding", "gemma_mixed", "neox_eager"])
def test_answers_are_those_of_prompts_read_whole(world, tmp_path, shape):
    base = world[0] if shape == "tiny" else shaped_base(tmp_path / "base", shape)
    models = [served(base, "base", "base", None)]
    common = list(range(10, 90))
    work = [("base", common[: 70 + 3 * i] + prompt, GREEDY) for i, prompt in enumerate(drawn_prompts(6, 20, 300))]
    whole = dataclasses.replace(ENGINE, prefill_chunk_tokens=4096).load(base, max_running=6)
    whole.add(models[0])
    expected = [asyncio.run(answer(whole, *item)) for item in work]
    whole.close()
    engine = loaded(base, models)

    async def together():
        return await asyncio.gather(*(answer(engine, *item) for item in work))

    assert asyncio.run(together()) == expected
    assert engine._resident._batch._prefixes.held_bytes > 0
    assert asyncio.run(together()) == expected
    engine.close()


def test_a_common_beginning_is_read_once_per_adapter(world, monkeypatch):
    base, models = world
    engine = loaded(base, models)
    passes = Passes(engine, monkeypatch)
    common = list(range(3, 75))
    for model, tokens in (("base", 74), ("base", 10), ("one", 74), ("one", 10), ("base", 10)):
        passes.seen.clear()
        asyncio.run(answer(engine, model, [*common, 200, 201 + len(passes.seen)], GREEDY))
        assert sum(size for kind, size in passes.seen if kind == "read") == tokens, (model, tokens)
    engine.remove("one")
    assert len(engine._resident._batch._prefixes._blocks) == 1
    engine.close()


def test_long_answers_do_not_widen_the_rows_of_short_ones(world, monkeypatch):
    base, models = world
    monkeypatch.setattr(batch_module, "ROWS_TOKENS", {"cpu": (32, 64)})
    engine = loaded(base, models)
    prompts = [[5, 6, 7], [8, 9], list(range(3, 43)), list(range(3, 100))]
    work = [(models[i % 2].id, prompt, GREEDY) for i, prompt in enumerate(prompts)]
    expected = [asyncio.run(answer(engine, *item)) for item in work]
    rows = engine._resident._batch.rows
    most = [0, 0, 0]
    for place, each in enumerate(rows):
        logits = each.decoding.logits

        def watched(each=each, place=place, logits=logits):
            most[place] = max(most[place], len(each))
            return logits()

        each.decoding.logits = watched

    async def together():
        return await asyncio.gather(*(answer(engine, *item) for item in work))

    assert asyncio.run(together()) == expected
    assert most == [2, 1, 1]
    engine.close()


def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_place(world):
    base, models = world
    engine = loaded(base, models)
    batch = engine._resident._batch
    read, first, left = batch.read, threading.Event(), threading.Event()

    def read_until_the_client_left():
        ended = read()
        first.set()
        assert left.wait(10)
        return ended

    async def leave():
        task = asyncio.create_task(anext(engine.generate("one", list(range(3, 100)), GREEDY)))
        await asyncio.to_thread(first.wait, 10)
        assert len(batch._begun) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        left.set()
        await answer(engine, "one", [5, 6], GREEDY)

    batch.read = read_until_the_client_left
    asyncio.run(leave())
    assert not len(batch) and not engine._resident.adapter_cache._users
    assert all(not rows.kv_cache.promised for rows in batch.rows)
    engine.close()


@pytest.mark.parametrize("kind", ["base", "one", "dora"])
def test_log_probabilities_of_a_prompt_are_the_models_own(world, tmp_path, kind):
    base, models = world
    folder = write_adapter(base, tmp_path / "dora", seed=2, dora=True)
    engine = loaded(base, [*models, served(base, "dora", "adapter", folder)])
    prompt = list(range(3, 53))
    wanted = dataclasses.replace(GREEDY, num_prompt_logprobs=2, num_logprobs=0, max_tokens=0)

    async def asked():
        stream = engine.generate(kind, prompt, wanted)
        scored, _ = await asyncio.gather(anext(stream), answer(engine, kind, [*prompt, 9], GREEDY))
        return scored

    asyncio.run(answer(engine, kind, [*prompt, 9], GREEDY))
    delta = asyncio.run(asked())
    assert delta.finish is Finish.length and not delta.text and not delta.num_tokens and not delta.logprobs
    _plain, tuned = engine.references(engine._models[kind]) if kind != "base" else [base.load().eval()] * 2
    with torch.inference_mode():
        logprobs = tuned(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert delta.prompt_logprobs[0] is None
    found = delta.prompt_logprobs[1:]
    assert [each.logprob for each in found] == pytest.approx(expected, abs=1e-4)
    assert [each.top[0].logprob for each in found] == pytest.approx(logprobs[:-1].max(-1).values.tolist(), abs=1e-4)
    assert {len(each.top) for each in found} == {2}
    engine.close()


def test_an_encoder_decoder_base_has_no_probabilities_of_its_prompts(tmp_path):
    base = make_base(tmp_path / "t5", is_encoder_decoder=True)
    engine = loaded(base, [served(base, "base", "base", None)])
    with pytest.raises(InputError, match="an encoder-decoder base has no probabilities of its prompts"):
        asyncio.run(answer(engine, "base", [5, 6], dataclasses.replace(GREEDY, num_prompt_logprobs=1)))
    engine.close()


def test_waiting_answers_are_started_in_turn_among_clients(world):
    base, models = world
    engine = ENGINE.load(base, max_running=1)
    engine.add(models[0])
    ended = []

    async def asked(client, number):
        async for _ in engine.generate("base", [5, 6, 7 + number], GREEDY, client):
            pass
        ended.append((client, number))

    async def together():
        await asyncio.gather(*(asked(*each) for each in [*(("many", i) for i in range(5)), ("one", 0), ("two", 0)]))

    asyncio.run(together())
    assert {ended.index(("one", 0)), ended.index(("two", 0))} <= {0, 1, 2}
    assert [number for client, number in ended if client == "many"] == [0, 1, 2, 3, 4]
    engine.close()
