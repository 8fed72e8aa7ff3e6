"""A request's parameters, from its prompt to the text: batched and unbatched answers heed the same ones."""

import asyncio
import dataclasses
import json

import jsonschema
import pytest
import torch
from serving_world import ENGINE, make_base

from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Finish, Sampling, ServedModel

GREEDY = Sampling(max_tokens=10, temperature=0.0, top_p=1.0, seed=1, stop=(), num_logprobs=None, stream=True)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, "x"]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=[False, True], ids=["causal", "encoder_decoder"])
def world(request, tmp_path_factory):
    """A base, its engine, its tokenizer, and the ids of a prompt."""
    base = make_base(tmp_path_factory.mktemp("world") / "tiny", is_encoder_decoder=request.param)
    tokens = Tokens(base.tokenizer(), max_tokens=128, is_encoder_decoder=request.param)
    engine = ENGINE.load(base, max_running=8)
    engine.add(ServedModel("base", "base", None, tokens, tuple(tokens.stop_ids())))
    yield base, engine, tokens.tokenizer, tokens.prompt("Miss the bus")
    engine.close()


async def collect(engine, prompt, sampling):
    return [delta async for delta in engine.generate("base", prompt, sampling)]


def deltas_of(engine, prompt, **changes):
    return asyncio.run(collect(engine, prompt, dataclasses.replace(GREEDY, **changes)))


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def test_a_repetition_penalty_is_that_of_generate(world):
    base, engine, tokenizer, prompt = world
    model, ids = base.load().eval(), torch.tensor([prompt])
    lengths = {"max_new_tokens": 10, "do_sample": False}
    found = model.generate(ids, **lengths, repetition_penalty=0.4)[0]
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    expected = tokenizer.decode(found[start:], skip_special_tokens=True)
    assert text_of(deltas_of(engine, prompt, repetition_penalty=0.4)) == expected
    assert text_of(deltas_of(engine, prompt)) != expected


def test_a_frequency_penalty_sees_the_answers_own_tokens(world):
    _, engine, _, prompt = world
    tokens = [
        entry.data for d in deltas_of(engine, prompt, frequency_penalty=100.0, num_logprobs=0) for entry in d.logprobs
    ]
    assert len(set(tokens)) == len(tokens) == 10


def test_a_schema_bounds_the_answer_and_ends_it(world):
    _, engine, _, prompt = world
    texts = set()
    for seed in range(3):
        deltas = deltas_of(
            engine, prompt, json_schema=json.dumps(SCHEMA), temperature=1.0, seed=seed, max_tokens=400, ignore_eos=True
        )
        assert deltas[-1].finish is Finish.stop
        jsonschema.validate(json.loads(text_of(deltas)), SCHEMA)
        texts.add(text_of(deltas))
    assert len(texts) > 1


def test_max_tokens_cut_an_answer_by_a_schema(world):
    _, engine, _, prompt = world
    deltas = deltas_of(engine, prompt, json_schema=json.dumps(SCHEMA), max_tokens=3)
    assert (deltas[-1].finish, sum(delta.num_tokens for delta in deltas)) == (Finish.length, 3)
    assert text_of(deltas).strip().startswith("{")


def test_a_refused_schema_raises_before_the_answer_and_leaves_the_engine_working(world):
    _, engine, _, prompt = world
    with pytest.raises(InputError, match="Unimplemented keys"):
        deltas_of(engine, prompt, json_schema='{"not": {}}')
    assert engine.num_running == 0
    assert deltas_of(engine, prompt)[-1].finish is not None


def test_an_answer_whose_pattern_grows_too_large_ends_alone(world):
    _, engine, tokenizer, prompt = world
    (letter,) = tokenizer.encode("x", add_special_tokens=False)[-1:]
    hard = {"type": "string", "pattern": "((x{0,100}){0,100}){0,100}"}
    sampling = dataclasses.replace(
        GREEDY, json_schema=json.dumps(hard), max_tokens=100, logit_bias=((letter, 100.0),), ignore_eos=True
    )

    async def both():
        return await asyncio.gather(
            collect(engine, prompt, sampling), collect(engine, prompt, GREEDY), return_exceptions=True
        )

    failed, other = asyncio.run(both())
    assert isinstance(failed, InputError) and "can't continue by its JSON schema" in str(failed)
    assert text_of(other) == text_of(deltas_of(engine, prompt))


def test_answers_with_and_without_settings_do_not_depend_on_each_other(world):
    _, engine, _, prompt = world
    work = [
        dataclasses.replace(GREEDY, **changes)
        for changes in (
            {},
            {"temperature": 1.0, "top_k": 4},
            {"temperature": 1.0, "min_p": 0.2, "presence_penalty": 2.0},
            {"json_schema": json.dumps(SCHEMA), "temperature": 1.0},
            {"temperature": 1.0, "top_p": 0.8},
        )
    ]

    async def together():
        return await asyncio.gather(*(collect(engine, prompt, sampling) for sampling in work))

    alone = [text_of(asyncio.run(collect(engine, prompt, sampling))) for sampling in work]
    assert [text_of(deltas) for deltas in asyncio.run(together())] == alone


def test_logprobs_are_the_models_own_whatever_is_changed(world):
    _, engine, _, prompt = world
    plain = deltas_of(engine, prompt, num_logprobs=3)
    changes = {"json_schema": json.dumps(SCHEMA), "logit_bias": ((5, 3.0),), "presence_penalty": 1.0}
    for changed in (changes, {"repetition_penalty": 2.0, "ignore_eos": True}):
        found = deltas_of(engine, prompt, num_logprobs=3, **changed)
        top = [[entry.logprob for entry in deltas[0].logprobs[0].top] for deltas in (plain, found)]
        assert top[0] == pytest.approx(top[1], abs=1e-5)


def test_end_tokens_can_be_ignored(world):
    _, engine, tokenizer, prompt = world
    bias = ((tokenizer.eos_token_id, 100.0),)
    ended = deltas_of(engine, prompt, logit_bias=bias)
    assert [(delta.text, delta.num_tokens, delta.finish) for delta in ended] == [("", 0, Finish.stop)]
    endless = deltas_of(engine, prompt, logit_bias=bias, ignore_eos=True)
    assert (sum(delta.num_tokens for delta in endless), endless[-1].finish) == (10, Finish.length)


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_may_be_asked_for(world, stream):
    _, engine, _, prompt = world
    deltas = deltas_of(engine, prompt, max_tokens=0, stream=stream, num_logprobs=2)
    assert [(d.text, d.num_tokens, d.logprobs, d.finish) for d in deltas] == [("", 0, (), Finish.length)]


def test_an_answer_that_is_not_streamed_comes_in_one_delta_also_with_stop_strings(world):
    _, engine, _, prompt = world
    whole = text_of(deltas_of(engine, prompt))
    for stop in ((), ("never",), (whole[5:7],)):
        streamed = deltas_of(engine, prompt, stop=stop, num_logprobs=1)
        (single,) = deltas_of(engine, prompt, stop=stop, num_logprobs=1, stream=False)
        assert (single.text, single.finish) == (text_of(streamed), streamed[-1].finish)
        assert len(single.logprobs) == sum(len(delta.logprobs) for delta in streamed) == single.num_tokens
