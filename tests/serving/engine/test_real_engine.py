"""Adapters of a real base served side by side: each answers as it does in PEFT, and ends its answers as the base's
template ends them."""

import asyncio

import pytest
import torch
from real_world import files_of, job_of, trained
from serving_world import ENGINE

from raytune_llm.data.examples import IGNORED
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs.prepare import prepare
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.engine.base import Finish, Sampling, ServedModel
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.reference import Reference

pytestmark = pytest.mark.real
MAX_TOKENS = 48
GREEDY = Sampling(max_tokens=MAX_TOKENS, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=True)


@pytest.fixture(scope="module")
def jobs(real_base, tmp_path_factory):
    """A job on labels, prompts of which are texts, and one on chats."""
    folder = tmp_path_factory.mktemp("real")
    overrides = {"labels": ["tuning.steps=8"], "chats": ["tuning.steps=4", "tuning.adapter_size=4"]}
    return {
        kind: job_of(real_base, folder / kind, files_of(kind, folder, train=32, eval=8), *own)
        for kind, own in overrides.items()
    }


@pytest.fixture(scope="module")
def models(jobs, tmp_path_factory):
    """The adapters of these jobs, trained in packs, as an engine takes them."""
    found = {}
    for kind, job in jobs.items():
        adapter = trained(job, tmp_path_factory.mktemp(kind), packed=True, base=False).folder
        tokens = Tokens(job.model.tokenizer(), max_tokens=512, is_encoder_decoder=False)
        found[kind] = ServedModel(kind, "adapter", adapter, tokens, tuple(tokens.stop_ids()))
    return found


@pytest.fixture(scope="module")
def engine(jobs, models):
    engine = ENGINE.load(jobs["labels"].model.resolved("cpu"), max_running=4)
    for model in models.values():
        engine.add(model)
    yield engine
    engine.close()


def prompts(job, count):
    return [job.method.question(record)[0] for record in prepare(job).splits.eval[:count]]


def test_a_chat_is_encoded_by_the_bases_template(jobs):
    job = jobs["chats"]
    tokenizer = job.model.tokenizer()
    sequence = prepare(job).examples.train[0]["completion"]
    text = tokenizer.decode(sequence.input_ids)
    assert "<|im_start|>user\n" in text and "<|im_start|>assistant\n" in text
    learned = tokenizer.decode([label for label in sequence.labels if label != IGNORED])
    assert "<|im_end|>" in learned and "<|im_start|>" not in learned


@pytest.mark.parametrize("kind", ["labels", "chats"])
def test_an_adapter_passes_the_parity_check(jobs, models, engine, kind):
    result = check_engine(engine, models[kind], prompts(jobs[kind], 3))
    assert result.num_probes == 3 and result.base_difference_nats > 0.5


def test_answers_of_several_adapters_at_once_are_pefts_and_end(jobs, models, engine):
    asked = [(kind, prompt) for kind in models for prompt in prompts(jobs[kind], 3)]

    async def one(kind, prompt):
        tokens = models[kind].tokens.prompt(prompt, max_new_tokens=MAX_TOKENS)
        return [delta async for delta in engine.generate(kind, tokens, GREEDY)]

    async def together():
        return await asyncio.gather(*(one(*item) for item in asked))

    answers = asyncio.run(together())
    base = jobs["labels"].model
    references = {
        kind: Reference(model, base.load().eval(), load_tuned(model.folder, base)) for kind, model in models.items()
    }
    for (kind, prompt), deltas in zip(asked, answers, strict=True):
        text = "".join(delta.text for delta in deltas).lstrip()
        assert text and "<|im_" not in text
        if kind == "labels":  # of a chat's many tokens, one may be a near-tie in half precision
            with torch.inference_mode():
                ids = models[kind].tokens.prompt(prompt, max_new_tokens=MAX_TOKENS)
                assert text == references[kind].greedy(ids, MAX_TOKENS).text
            assert deltas[-1].finish is Finish.stop, text
    assert any(
        deltas[-1].finish is Finish.stop for (kind, _), deltas in zip(asked, answers, strict=True) if kind == "chats"
    )
