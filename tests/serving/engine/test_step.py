"""Steps of few shapes, recorded or not, give the answers of steps of exact shapes, token by token."""

import asyncio
import dataclasses
import logging
import random

import pytest
from serving_world import make_base, write_adapter, write_model
from test_batch import adapter, answer, drawn_prompts, served, shaped_base
from test_row_lora import Products
from torch.fx.experimental.proxy_tensor import make_fx

from raytune_llm.errors import InputError
from raytune_llm.models.base import DType
from raytune_llm.models.decoding import routes
from raytune_llm.models.decoding.graphs import Graphs
from raytune_llm.models.pointwise import CompileError
from raytune_llm.serving.engine import resident_models
from raytune_llm.serving.engine.base import Sampling
from raytune_llm.serving.engine.decoder import LocalDecoder
from raytune_llm.serving.engine.resident_models import ResidentModels

SAMPLINGS = [
    Sampling(
        max_tokens=3 + 5 * (i % 7),
        temperature=(0.0, 0.8)[i % 2],
        top_p=(1.0, 0.7)[i % 3 == 0],
        seed=i,
        stop=(),
        num_logprobs=(None, 2)[i % 5 == 0],
        stream=bool(i % 4),
    )
    for i in range(24)
]


def recorded(step, is_first):
    """What a CUDA graph is, on the CPU: the step's operations on the addresses that it had when it was recorded."""
    traced = make_fx(step)()
    return lambda: traced()


def decoder(base, models, *, is_bucketed, capture=None, max_rows=6, max_adapters=8, compile=False):
    resident = ResidentModels(
        base,
        "cpu",
        max_rows=max_rows,
        max_adapters=max_adapters,
        max_lora_rank=32,
        cache_bytes=1 << 30,
        compile=compile,
        is_bucketed=is_bucketed,
    )
    engine = LocalDecoder(resident, max_running=max_rows)
    for model in models:
        engine.add(model)
    for rows in (rows for batch in resident.batches for rows in batch.rows):
        rows.decoding.graphs = Graphs(capture)
    return engine


def answers(engine, work, seed):
    """All of the work at once, each at a time of its own."""
    draw = random.Random(seed)

    async def together():
        return await asyncio.gather(*(answer(engine, *item, draw.random() * 0.1) for item in work))

    return asyncio.run(together())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    models = [served(base, "base", "base", None)]
    for name, seed, rank in (("one", 1, 4), ("two", 2, 8), ("three", 3, 1)):
        models.append(served(base, name, "adapter", write_adapter(base, root / name, seed=seed, rank=rank)))
    models.append(served(base, "whole", "model", write_model(base, root / "whole", seed=4)))
    prompts = drawn_prompts(24, 90, 300)
    work = [(models[i % 5].id, prompts[i], SAMPLINGS[i]) for i in range(24)]
    engine = decoder(base, models, is_bucketed=False)
    expected = [asyncio.run(answer(engine, *item)) for item in work]
    engine.close()
    assert len(set(expected)) > 12
    return base, models, work, expected


@pytest.mark.parametrize("kernels", [None, Products()], ids=["products", "kernels"])
@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("capture", [None, recorded], ids=["run", "recorded"])
def test_bucketed_steps_give_the_answers_of_exact_ones(world, monkeypatch, capture, is_grouped, kernels):
    base, models, work, expected = world
    monkeypatch.setattr(routes, "can_group", lambda table, layers: is_grouped)
    monkeypatch.setattr(routes, "row_kernels", lambda table, lora_rank: kernels)
    engine = decoder(base, models, is_bucketed=True, capture=capture)
    for seed in range(2):
        assert answers(engine, work, seed) == expected
    steps = [rows.decoding for batch in engine._resident.batches for rows in batch.rows]
    assert engine._resident.adapter_cache._routes.is_grouped == is_grouped
    if capture is not None:
        shapes = {key[:2] for step in steps for key in step.graphs._replays}
        assert shapes and shapes <= {(rows, 128) for rows in (1, 2, 4, 6)}
        assert all(step.graphs._capture is recorded for step in steps)
    engine.close()


@pytest.mark.parametrize("kernels", [None, Products()], ids=["products", "kernels"])
def test_recorded_steps_follow_adapters_that_are_evicted_and_buffers_that_move(world, monkeypatch, kernels):
    base, models, work, expected = world
    monkeypatch.setattr(routes, "can_group", lambda table, layers: True)
    monkeypatch.setattr(routes, "row_kernels", lambda table, lora_rank: kernels)
    engine = decoder(base, models, is_bucketed=True, capture=recorded, max_adapters=2)
    for seed in range(2):
        assert answers(engine, work, seed) == expected
        for batch in engine._resident.batches:
            engine._between_steps(batch.rows[0].kv_cache.clear)
    assert engine.num_adapter_loads > 4
    engine.close()


@pytest.mark.parametrize("dtype", [DType.float32, DType.float64])
@pytest.mark.parametrize("shape", ["qwen", "mistral_sliding", "gemma_mixed", "neox_eager"])
def test_recorded_steps_of_every_shape(tmp_path, shape, dtype):
    base = dataclasses.replace(shaped_base(tmp_path / "base", shape), dtype=dtype)
    targets = ["query_key_value"] if shape == "neox_eager" else ["q_proj", "down_proj"]
    folder = adapter(base, tmp_path / "one", 1, r=3, target_modules=targets)
    models = [served(base, "base", "base", None), served(base, "one", "adapter", folder)]
    work = [(models[i % 2].id, prompt, SAMPLINGS[i]) for i, prompt in enumerate(drawn_prompts(8, 200, 300))]
    engine = decoder(base, models, is_bucketed=False)
    expected = [asyncio.run(answer(engine, *item)) for item in work]
    engine.close()
    engine = decoder(base, models, is_bucketed=True, capture=recorded)
    assert answers(engine, work, 0) == expected
    assert {columns for _, columns, _ in engine._resident._batch.rows[0].decoding.graphs._replays} <= {128, 256}
    assert engine._resident._batch.rows[0].kv_cache.columns == 256
    engine.close()


def test_a_step_that_can_not_be_recorded_is_run_and_reported_once(world, caplog):
    base, models, work, expected = world

    def fails(step, is_first):
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = decoder(base, models, is_bucketed=True, capture=fails)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, work[:8], 0) == expected[:8]
    assert caplog.text.count("run without") == 2  # the base's batch and the tuned model's
    engine.close()


def test_pointwise_parts_are_fused_where_that_works_and_wanted(world, monkeypatch, caplog):
    base, models, work, expected = world
    fused = []
    monkeypatch.setattr(resident_models, "fuse_decoding", fused.append)
    for compile, is_bucketed, count in ((None, False, 0), (False, True, 0), (None, True, 1), (True, False, 2)):
        engine = decoder(base, models, is_bucketed=is_bucketed, compile=compile)
        assert answers(engine, work[:3], 0) == expected[:3]
        assert len(fused) == count
        engine.close()

    def failing(model):
        raise CompileError("no compiler")

    monkeypatch.setattr(resident_models, "fuse_decoding", failing)
    with pytest.raises(InputError, match="compile=true: no compiler; set it to null or false"):
        decoder(base, models, is_bucketed=True, compile=True)
    with caplog.at_level(logging.WARNING):
        decoder(base, models, is_bucketed=True, compile=None).close()
    assert "serving: no compiler; continuing without" in caplog.text
