"""Answers in a changing batch are those of a batch of one, for bases of several architectures."""

import asyncio
import dataclasses
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from serving_world import ENGINE, byte_level_tokenizer, greedy_text, make_base, write_adapter, write_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.models.base import Base, DType
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.engine.base import Sampling, ServedModel

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "qwen": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}, "sdpa"),
    "mistral_sliding": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "sliding_window": 8}, "sdpa"),
    "gemma_mixed": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "sdpa",
    ),
    "neox_eager": (GPTNeoXForCausalLM, GPTNeoXConfig, {}, "eager"),
}
GREEDY = Sampling(max_tokens=12, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=False)


def served(base, id, kind, folder):
    tokens = Tokens(base.tokenizer(), max_tokens=512, is_encoder_decoder=False)
    return ServedModel(id, kind, folder, tokens, tuple(tokens.stop_ids()))


def shaped_base(folder, shape):
    model, config, more, attention = SHAPES[shape]
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer()
    model(config(vocab_size=len(tokenizer), **SMALL, **more)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(
        name_or_path=str(folder),
        revision=None,
        dtype=DType.float32,
        learning_rate=1e-3,
        attention=attention,
        chat_template=None,
        eos_token=None,
        from_pretrained={},
    )


def adapter(base, folder, seed, **options):
    torch.manual_seed(seed)
    adapted = get_peft_model(base.load(), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    base.tokenizer().save_pretrained(folder)
    return folder


async def answer(engine, id, prompt, sampling, delay=0.0):
    await asyncio.sleep(delay)
    return "".join([delta.text async for delta in engine.generate(id, prompt, sampling)])


def drawn_prompts(count, longest, vocabulary, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(3, vocabulary) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_are_pefts_on_every_shape_while_others_come_and_go(tmp_path, shape):
    base = shaped_base(tmp_path / "base", shape)
    wide = ["query_key_value", "dense"] if shape == "neox_eager" else ["q_proj", "o_proj", "down_proj"]
    narrow = wide[:1]
    models = [
        served(base, "base", "base", None),
        served(base, "one", "adapter", adapter(base, tmp_path / "one", 1, r=2, lora_alpha=7, target_modules=narrow)),
        served(base, "two", "adapter", adapter(base, tmp_path / "two", 2, r=9, target_modules=wide, use_rslora=True)),
        served(
            base,
            "three",
            "adapter",
            adapter(
                base,
                tmp_path / "three",
                3,
                r=4,
                target_modules=wide,
                rank_pattern={narrow[0]: 6},
                alpha_pattern={narrow[0]: 3},
            ),
        ),
    ]
    engine = ENGINE.load(base, max_running=5)
    for model in models:
        engine.add(model)
    assert can_batch(base.load())
    prompts = drawn_prompts(12, 30, len(base.tokenizer()))
    work = [(models[i % 4], prompt, 1 + 2 * (i % 7)) for i, prompt in enumerate(prompts)]
    tuned = {m.id: base.load().eval() if m.folder is None else load_tuned(m.folder, base) for m in models}

    async def together():
        requests = [
            answer(engine, model.id, prompt, dataclasses.replace(GREEDY, max_tokens=length), 0.01 * (i % 3))
            for i, (model, prompt, length) in enumerate(work)
        ]
        return await asyncio.gather(*requests)

    expected = [greedy_text(tuned[model.id], model, prompt, length) for model, prompt, length in work]
    assert [text.lstrip() for text in asyncio.run(together())] == expected
    assert len(set(expected)) > 6
    engine.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    models = {
        "base": served(base, "base", "base", None),
        **{
            name: served(base, name, "adapter", write_adapter(base, root / name, seed=seed, rank=rank))
            for name, seed, rank in (("one", 1, 4), ("two", 2, 8), ("three", 3, 1))
        },
        "whole": served(base, "whole", "model", write_model(base, root / "whole", seed=4)),
    }
    return base, models


def loaded(base, models, **changed):
    engine = dataclasses.replace(ENGINE, **changed).load(base, max_running=4)
    for model in models.values():
        engine.add(model)
    return engine


def test_a_seed_gives_the_same_answer_whatever_else_is_decoded(world):
    base, models = world
    engine = loaded(base, models)
    prompts = drawn_prompts(20, 25, 300)
    samplings = [
        Sampling(
            max_tokens=3 + i % 11,
            temperature=(0.0, 0.7, 1.3)[i % 3],
            top_p=(1.0, 0.6)[i % 2],
            seed=i - 5,
            stop=(),
            num_logprobs=i % 4 or None,
            stream=bool(i % 5),
        )
        for i in range(20)
    ]
    names = list(models)
    work = [(names[i % 5], prompts[i], samplings[i]) for i in range(20)]
    one_by_one = [asyncio.run(answer(engine, *item)) for item in work]
    draw = random.Random(1)

    async def together():
        return await asyncio.gather(*(answer(engine, *item, draw.random() * 0.05) for item in work))

    for _ in range(3):
        assert asyncio.run(together()) == one_by_one
    engine.close()


def test_more_adapters_than_rows_are_evicted_and_read_again(world):
    base, models = world
    engine, roomy = loaded(base, models, max_resident_adapters=1), loaded(base, models)
    names, prompt = ["one", "two", "three", "base"], [5, 6, 7]
    expected = {name: asyncio.run(answer(roomy, name, prompt, GREEDY)) for name in names}
    assert len(set(expected.values())) == 4
    order = random.Random(0).choices(names, k=24)

    async def together():
        return await asyncio.gather(*(answer(engine, name, prompt, GREEDY) for name in order))

    assert asyncio.run(together()) == [expected[name] for name in order]
    assert len(engine._resident.adapter_cache.resident) == 1
    engine.close()
    roomy.close()


def test_models_come_and_go_while_others_answer(world):
    base, models = world
    engine = loaded(base, {name: models[name] for name in ("base", "one", "whole")})
    prompt, long = [5, 6, 7], dataclasses.replace(GREEDY, max_tokens=90)
    expected = {name: asyncio.run(answer(engine, name, prompt, long)) for name in ("base", "one", "whole")}

    async def run():
        running = [asyncio.create_task(answer(engine, name, prompt, long)) for name in expected]
        await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.add, models["two"])
        late = asyncio.create_task(answer(engine, "two", prompt, GREEDY))
        await asyncio.to_thread(engine.remove, "one")
        await asyncio.to_thread(engine.remove, "whole")
        with pytest.raises(InputError, match="just been unloaded"):
            await answer(engine, "one", prompt, GREEDY)
        assert await late
        return await asyncio.gather(*running)

    assert asyncio.run(run()) == list(expected.values())
    asyncio.run(answer(engine, "base", prompt, GREEDY))
    assert "one" not in engine._resident.adapter_cache and len(engine._resident.batches) == 1
    engine.add(models["one"])
    assert asyncio.run(answer(engine, "one", prompt, long)) == expected["one"]
    engine.close()


def test_logits_that_are_not_finite_end_only_their_own_answer(world):
    base, models = world
    engine = loaded(base, models)
    prompt = [5, 6, 7]
    expected = asyncio.run(answer(engine, "one", prompt, GREEDY))
    cache = engine._resident.adapter_cache
    with torch.inference_mode():
        cache._stack.table[cache._slots["two"]] = float("nan")

    async def both():
        good, bad = answer(engine, "one", prompt, GREEDY), answer(engine, "two", prompt, GREEDY)
        return await asyncio.gather(good, bad, return_exceptions=True)

    for _ in range(2):
        good, bad = asyncio.run(both())
        assert good == expected
        assert isinstance(bad, RuntimeError) and "not finite" in str(bad.__cause__)
    engine.close()
