"""The local engine gives the answers of transformers and PEFT, whatever else it decodes."""

import asyncio
import dataclasses
import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving_world import ENGINE, greedy_text, make_base, write_adapter, write_model
from worlds import write_base

from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.engine.base import Finish, Sampling, ServedModel
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.verify.reference import first_logprobs

PROMPTS = ["Miss the bus", "naïve café", (Message("user", "What a lovely day"),)]
GREEDY = Sampling(max_tokens=12, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=True)
SAMPLED = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=7, stop=(), num_logprobs=None, stream=True)


def served(base, id, kind, folder):
    tokens = Tokens(base.tokenizer(), max_tokens=128, is_encoder_decoder=base.facts.is_encoder_decoder)
    return ServedModel(id, kind, folder, tokens, tuple(tokens.stop_ids()))


@pytest.fixture(scope="module", params=[False, True], ids=["causal", "encoder_decoder"])
def world(request, tmp_path_factory):
    """A base, its models, and an engine that has them all."""
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny", is_encoder_decoder=request.param)
    models = {
        "base": served(base, "base", "base", None),
        "one": served(base, "one", "adapter", write_adapter(base, root / "one", seed=1)),
        "two": served(base, "two", "adapter", write_adapter(base, root / "two.5", seed=2, rank=2)),
        "dora": served(base, "dora", "adapter", write_adapter(base, root / "dora", seed=3, dora=True)),
        "whole": served(base, "whole", "model", write_model(base, root / "whole", seed=4)),
    }
    engine = ENGINE.load(base, max_running=4)
    for model in models.values():
        engine.add(model)
    yield base, models, engine
    engine.close()


def reference(base, model):
    return base.load().eval() if model.folder is None else load_tuned(model.folder, base)


async def collect(engine, model, prompt, sampling):
    return [delta async for delta in engine.generate(model.id, model.tokens.prompt(prompt), sampling)]


def answer(engine, model, prompt, sampling):
    deltas = asyncio.run(collect(engine, model, prompt, sampling))
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    return "".join(delta.text for delta in deltas)


def test_greedy_answers_are_those_of_generate_for_each_model(world):
    base, models, engine = world
    answers = {}
    for id, model in models.items():
        tuned = reference(base, model)
        for prompt in PROMPTS:
            expected = greedy_text(tuned, model, model.tokens.prompt(prompt), GREEDY.max_tokens)
            assert answer(engine, model, prompt, GREEDY).lstrip() == expected, (id, prompt)
        answers[id] = tuple(answer(engine, model, prompt, GREEDY) for prompt in PROMPTS)
    assert len(set(answers.values())) == len(models), "these prompts don't distinguish the models"


def test_a_base_that_names_no_first_token_of_its_decoder(tmp_path):
    base = dataclasses.replace(make_base(tmp_path / "other"), name_or_path=str(tmp_path), attention="eager")
    write_base(tmp_path, "t5gemma")
    engine, model = ENGINE.load(base, max_running=2), served(base, "base", "base", None)
    engine.add(model)
    expected = greedy_text(reference(base, model), model, model.tokens.prompt("red cat"), GREEDY.max_tokens)
    assert answer(engine, model, "red cat", GREEDY).lstrip() == expected != ""
    engine.close()


def test_answers_decoded_together_are_those_decoded_one_by_one(world):
    _, models, engine = world
    work = [
        (model, prompt, sampling) for model in models.values() for prompt in PROMPTS for sampling in (GREEDY, SAMPLED)
    ]
    one_by_one = [answer(engine, *item) for item in work]

    async def together():
        return await asyncio.gather(*(collect(engine, *item) for item in work))

    assert ["".join(delta.text for delta in deltas) for deltas in asyncio.run(together())] == one_by_one


def test_a_seed_repeats_an_answer_and_another_seed_changes_it(world):
    _, models, engine = world

    def sampled(seed):
        sampling = Sampling(
            max_tokens=16, temperature=1.0, top_p=1.0, seed=seed, stop=(), num_logprobs=None, stream=True
        )
        return answer(engine, models["one"], PROMPTS[0], sampling)

    assert sampled(3) == sampled(3)
    assert len({sampled(seed) for seed in range(6)}) > 1
    assert len({sampled(None) for _ in range(6)}) > 1


def test_a_tiny_top_p_is_greedy(world):
    _, models, engine = world
    narrow = Sampling(max_tokens=12, temperature=1.0, top_p=1e-6, seed=1, stop=(), num_logprobs=None, stream=True)
    assert answer(engine, models["two"], PROMPTS[0], narrow) == answer(engine, models["two"], PROMPTS[0], GREEDY)


def test_a_stop_string_ends_the_answer_before_it(world):
    _, models, engine = world
    whole = answer(engine, models["one"], PROMPTS[0], GREEDY)
    stop = whole[4:6]
    sampling = Sampling(
        max_tokens=12, temperature=0.0, top_p=1.0, seed=None, stop=(stop,), num_logprobs=None, stream=True
    )
    deltas = asyncio.run(collect(engine, models["one"], PROMPTS[0], sampling))
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish is Finish.stop


def test_length_counts_tokens_and_is_the_finish_reason(world):
    _, models, engine = world
    sampling = Sampling(max_tokens=3, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=True)
    deltas = asyncio.run(collect(engine, models["one"], PROMPTS[0], sampling))
    assert (sum(delta.num_tokens for delta in deltas), deltas[-1].finish) == (3, Finish.length)


def test_an_end_token_ends_the_answer_and_is_not_shown(world):
    base, models, engine = world
    model = models["one"]
    prompt = model.tokens.prompt(PROMPTS[0])
    first = int(first_logprobs(reference(base, model), prompt).argmax())
    ending = ServedModel("ending", "adapter", model.folder, model.tokens, (first,))
    engine.add(ending)
    deltas = asyncio.run(collect(engine, ending, PROMPTS[0], GREEDY))
    assert [(delta.text, delta.num_tokens, delta.finish) for delta in deltas] == [("", 0, Finish.stop)]


def test_logprobs_are_the_models_own_whatever_the_temperature(world):
    base, models, engine = world
    model = models["two"]
    expected = first_logprobs(reference(base, model), model.tokens.prompt(PROMPTS[0])).topk(3)
    for temperature in (0.0, 1.7):
        sampling = Sampling(
            max_tokens=2, temperature=temperature, top_p=1.0, seed=0, stop=(), num_logprobs=3, stream=True
        )
        deltas = asyncio.run(collect(engine, model, PROMPTS[0], sampling))
        found = [entry for delta in deltas for entry in delta.logprobs]
        assert len(found) == 2
        assert [top.logprob for top in found[0].top] == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert found[0].logprob <= found[0].top[0].logprob


def test_a_client_that_leaves_frees_its_place(world):
    _, models, engine = world
    long = Sampling(max_tokens=100, temperature=1.0, top_p=1.0, seed=0, stop=(), num_logprobs=None, stream=True)

    async def leave():
        stream = engine.generate("one", models["one"].tokens.prompt(PROMPTS[0]), long)
        await anext(stream)
        assert engine.num_running == 1
        await stream.aclose()
        assert engine.num_running == 0
        return await collect(engine, models["two"], PROMPTS[0], GREEDY)

    assert "".join(d.text for d in asyncio.run(leave())) == answer(engine, models["two"], PROMPTS[0], GREEDY)


def test_a_failing_answer_ends_no_other(world, monkeypatch):
    _, models, engine = world
    add_token = GenerationRequest.add_token

    def failing(request, *token):
        if request.prompt == [17]:
            raise ValueError("17")
        return add_token(request, *token)

    monkeypatch.setattr(GenerationRequest, "add_token", failing)

    async def both():
        bad = engine.generate("one", [17], GREEDY)
        good = asyncio.create_task(collect(engine, models["one"], PROMPTS[0], GREEDY))
        with pytest.raises(RuntimeError, match="decoding by one failed"):
            await anext(bad)
        return await good

    assert asyncio.run(both())[-1].finish is not None
    engine.check_health()


@pytest.mark.parametrize("prompt, bias", [([10**6], ()), ([5], ((10**6, 1.0),))])
def test_tokens_that_the_model_does_not_have_are_refused(world, prompt, bias):
    _, _, engine = world
    with pytest.raises(InputError, match=r"token id 1000000: this model has \d+ tokens"):
        asyncio.run(anext(engine.generate("one", prompt, dataclasses.replace(GREEDY, logit_bias=bias))))
    assert engine.num_running == 0


def test_a_model_in_use_is_unloaded_after_its_last_answer(world, monkeypatch):
    _, models, engine = world
    reading, read = threading.Event(), threading.Event()
    compile = GenerationRequest.compile

    async def slow(request):
        reading.set()
        await asyncio.to_thread(read.wait, 10)
        await compile(request)

    expected = answer(engine, models["two"], PROMPTS[0], GREEDY)
    monkeypatch.setattr(GenerationRequest, "compile", slow)

    async def unloaded_meanwhile():
        asked = asyncio.create_task(collect(engine, models["two"], PROMPTS[0], GREEDY))
        await asyncio.to_thread(reading.wait, 10)
        await asyncio.to_thread(engine.remove, "two")
        with pytest.raises(InputError, match="two has just been unloaded; ask again"):
            await anext(engine.generate("two", [5], GREEDY))
        assert engine.num_running == 1
        read.set()
        return await asked

    assert "".join(delta.text for delta in asyncio.run(unloaded_meanwhile())) == expected
    deadline = time.monotonic() + 10
    while engine._retired and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine._retired and "two" not in engine.adapters_in_memory()
    engine.add(models["two"])
    assert answer(engine, models["two"], PROMPTS[0], GREEDY) == expected


def broken(folder, change):
    """A copy of an adapter whose weights were changed."""
    copy = folder.parent / f"broken_{change.__name__}"
    shutil.copytree(folder, copy)
    file = copy / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    return copy


def nan(weights):
    weights[sorted(weights)[0]][0, 0] = float("nan")


def other_rank(weights):
    for name in weights:
        weights[name] = torch.zeros(9, 9)


def a_layer_less(weights):
    weights.pop(sorted(weights)[0])


def a_layer_more(weights):
    weights["base_model.model.model.layers.99.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(nan, "NaN"), (other_rank, "size mismatch"), (a_layer_less, "1 missing"), (a_layer_more, "1 unexpected")],
)
def test_broken_adapters_are_refused_with_the_reason_and_the_others_still_answer(world, change, reason):
    base, models, engine = world
    before = [answer(engine, models[id], PROMPTS[0], GREEDY) for id in ("base", "one", "two")]
    with pytest.raises(InputError, match=reason):
        engine.add(served(base, change.__name__, "adapter", broken(models["one"].folder, change)))
    assert [answer(engine, models[id], PROMPTS[0], GREEDY) for id in ("base", "one", "two")] == before


def test_a_broken_first_adapter_leaves_the_base_as_it_was(tmp_path):
    base = make_base(tmp_path / "tiny")
    engine = ENGINE.load(base, max_running=1)
    plain, good = (
        served(base, "base", "base", None),
        served(base, "x", "adapter", write_adapter(base, tmp_path / "x", seed=1)),
    )
    engine.add(plain)
    before = answer(engine, plain, PROMPTS[0], GREEDY)
    with pytest.raises(InputError, match="1 missing"):
        engine.add(served(base, "broken", "adapter", broken(good.folder, a_layer_less)))
    assert answer(engine, plain, PROMPTS[0], GREEDY) == before
    engine.add(good)
    assert answer(engine, good, PROMPTS[0], GREEDY) != before
    assert answer(engine, plain, PROMPTS[0], GREEDY) == before
    engine.close()


def test_a_closed_engine_is_unhealthy(tmp_path):
    base = make_base(tmp_path / "tiny")
    engine = ENGINE.load(base, max_running=1)
    engine.close()
    with pytest.raises(RuntimeError, match="decoding thread has ended"):
        engine.check_health()


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"serve\.engine\.use_gpu=true"):
        dataclasses.replace(ENGINE, use_gpu=True).resources(cluster_has_gpu=False)
    assert dataclasses.replace(ENGINE, cpus_per_replica=2, use_gpu=None).resources(cluster_has_gpu=True) == {
        "num_cpus": 2,
        "num_gpus": 1.0,
    }
    assert dataclasses.replace(ENGINE, cpus_per_replica=2).resources(cluster_has_gpu=True)["num_gpus"] == 0.0
