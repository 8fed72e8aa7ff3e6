"""Each way to sample is that of transformers or of OpenAI's formula, and no row depends on the others."""

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from raytune_llm.serving.engine.base import Sampling
from raytune_llm.serving.engine.logit_changes import LogitChanges
from raytune_llm.serving.engine.sampled_rows import NUM_LIKELIEST
from raytune_llm.serving.engine.sampling import Sampler, SamplingState, generation_config

CPU = torch.device("cpu")
SIZE = 50
PLAIN = Sampling(max_tokens=9, temperature=1.0, top_p=1.0, seed=3, stop=(), num_logprobs=None, stream=True)


def given(**changes):
    return dataclasses.replace(PLAIN, **changes)


def logits(rows, seed=0, dtype=torch.float32):
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def probabilities(sampling, scores):
    """Estimated from the sampler itself: the share of each token among the quantiles of one row."""
    count = 4000
    state = SamplingState(sampling)
    numbers = iter((place + 0.5) / count for place in range(count))
    state.uniform = lambda: next(numbers)
    sampler = Sampler([state], CPU)
    found = Counter(int(sampler(scores)) for _ in range(count))
    return torch.tensor([found[token] / count for token in range(SIZE)])


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (given(top_k=7), [TopKLogitsWarper(7)]),
        (given(top_k=1), [TopKLogitsWarper(1)]),
        (given(top_k=10**6), []),
        (given(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (given(min_p=1.0), [MinPLogitsWarper(1.0)]),
        (given(temperature=1.5, top_k=20, top_p=0.8), [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20)]),
        (
            given(temperature=0.7, top_k=12, top_p=0.95, min_p=0.05),
            [TemperatureLogitsWarper(0.7), TopKLogitsWarper(12), TopPLogitsWarper(0.95), MinPLogitsWarper(0.05)],
        ),
        (given(top_p=0.9, min_p=0.3), [TopPLogitsWarper(0.9), MinPLogitsWarper(0.3)]),
    ],
)
def test_the_distribution_is_that_of_transformers(sampling, warpers):
    if sampling.top_p == 0.8:
        warpers = [*warpers, TopPLogitsWarper(0.8)]
    for seed in range(2):
        scores = logits(1, seed)
        expected = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), scores.clone()).softmax(-1)[0]
        found = probabilities(sampling, scores)
        assert_close(found, expected, atol=5e-4, rtol=0)
        assert ((found > 0) <= (expected > 0)).all()


def test_top_k_keeps_all_that_are_as_likely_as_the_last():
    scores = torch.tensor([[3.0, 2.0, 2.0, 1.0] + [0.0] * (SIZE - 4)])
    assert (probabilities(given(top_k=2), scores) > 0).nonzero()[:, 0].tolist() == [0, 1, 2]


def changed(samplings, scores, prompts, answers):
    states = [SamplingState(sampling, prompt) for sampling, prompt in zip(samplings, prompts, strict=True)]
    for state, answer in zip(states, answers, strict=True):
        for token in answer:
            state.add(token)
    return LogitChanges([state.answer for state in states], CPU)(scores)


def test_repetition_penalty_and_bias_are_those_of_transformers():
    prompt, answer = [1, 2, 2, 9], [4, 9, 4]
    for penalty in (1.3, 0.8):
        sampling = given(repetition_penalty=penalty, logit_bias=((4, 2.5), (7, -100.0)))
        scores = logits(1)
        expected = LogitsProcessorList(
            [
                SequenceBiasLogitsProcessor([[[4], 2.5], [[7], -100.0]]),
                RepetitionPenaltyLogitsProcessor(penalty),
            ]
        )(torch.tensor([prompt + answer]), scores.clone())
        assert_close(changed([sampling], scores, [prompt], [answer]), expected)


def test_presence_and_frequency_penalties_are_openais_over_the_answer():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence"""
    answer = [4, 9, 4, 4]
    scores = logits(1)
    counts = torch.zeros(SIZE)
    for token in answer:
        counts[token] += 1
    sampling = given(presence_penalty=0.7, frequency_penalty=-0.4)
    found = changed([sampling], scores, [[1, 2, 9]], [answer])
    assert_close(found[0], scores[0] - counts * -0.4 - (counts > 0) * 0.7)


def test_more_tokens_than_the_counts_had_room_for():
    scores = logits(1)
    answer = list(range(SIZE)) * 4
    found = changed([given(frequency_penalty=0.5)], scores, [[]], [answer])
    assert_close(found, scores - 2.0)


MIXED = [
    PLAIN,
    given(temperature=0.0, frequency_penalty=2.0),
    given(top_k=5, seed=1),
    given(top_p=0.7, seed=2, presence_penalty=1.0),
    given(min_p=0.1, seed=4, repetition_penalty=1.2),
    given(top_p=0.9, top_k=9, min_p=0.02, seed=5),
    given(temperature=0.0, logit_bias=((3, 5.0),)),
    given(temperature=0.0),
]


def sampled(samplings, rows, steps=6):
    states = [SamplingState(sampling, [1, 2, 3]) for sampling in samplings]
    sampler = Sampler(states, CPU)
    answers = []
    for step in range(steps):
        scores = logits(len(MIXED), step)[rows]
        before = scores.clone()
        tokens = sampler(scores).tolist()
        assert torch.equal(scores, before)
        for state, token in zip(states, tokens, strict=True):
            state.add(token)
        answers.append(tokens)
    return [list(answer) for answer in zip(*answers, strict=True)]


def test_rows_do_not_depend_on_each_other():
    everything = list(range(len(MIXED)))
    together = sampled(MIXED, everything)
    assert together == [sampled([MIXED[row]], [row])[0] for row in everything]
    assert together == sampled(MIXED[::-1], everything[::-1])[::-1]
    plain = [dataclasses.replace(PLAIN, temperature=one.temperature, seed=one.seed) for one in MIXED]
    ordinary = sampled(plain, everything)
    assert [a == b for a, b in zip(together, ordinary, strict=True)][0::7] == [True, True]
    assert together[1:7] != ordinary[1:7]


@pytest.mark.parametrize("temperature", [1e-307, 5e-324, 1e-40, 1e-5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-300])
def test_the_smallest_temperatures_are_greedy(temperature, top_p):
    scores = logits(3)
    scores[1, 5] = -math.inf
    sampler = Sampler([SamplingState(given(temperature=temperature, top_p=top_p, top_k=k)) for k in (None, 2, 1)], CPU)
    for _ in range(5):
        assert sampler(scores).tolist() == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e300},
        {"temperature": 1e300, "top_p": 0.5},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"frequency_penalty": 1e300},
        {"presence_penalty": -1e300},
        {"logit_bias": ((3, 1e308), (3, 1e308), (4, -1e308))},
        {"min_p": 1.0, "top_p": 1e-300, "top_k": 1},
    ],
)
def test_other_extremes_give_tokens_too(extreme):
    state, scores = SamplingState(given(**extreme), [1, 2, 5]), logits(1)
    scores[0, 6] = 0.0
    state.add(6)
    state.add(7)
    assert 0 <= int(Sampler([state], CPU)(scores)) < SIZE


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_rows_without_a_finite_logit_have_no_token_and_disturb_no_other(top_p):
    scores = logits(4)
    scores[0] = math.nan
    scores[1] = -math.inf

    def states_of(rows):
        more = {"top_k": 3, "min_p": 0.1, "frequency_penalty": 1.0, "top_p": top_p}
        return [SamplingState(given(**more, seed=row)) for row in rows]

    found = Sampler(states_of(range(4)), CPU)(scores).tolist()
    assert found[:2] == [-1, -1]
    assert found[2:] == Sampler(states_of((2, 3)), CPU)(scores[2:]).tolist()


def nucleus_of_all(scores, top_p, uniform):
    """By sorting the whole vocabulary."""
    ordered, order = scores.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    kept = int((cumulative - ordered < top_p).sum())
    place = int((cumulative[:kept] <= uniform * cumulative[kept - 1]).sum())
    return int(order[min(place, kept - 1)])


def test_a_nucleus_is_that_of_the_sorted_vocabulary_however_flat_it_is_and_with_ties():
    """Some of these are within the tokens that are sorted first, others aren't."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(8, 4 * NUM_LIKELIEST, generator=generator)
    scores = flat * torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0])[:, None]
    scores[4:6] = scores[4:6].round()
    for seed, top_p in enumerate([0.05, 0.3, 0.6, 0.9, 0.99, 1 - 1e-12]):
        states = [SamplingState(given(top_p=top_p, seed=seed)) for _ in range(8)]
        uniform = SamplingState(given(seed=seed)).uniform()
        expected = [nucleus_of_all(row, top_p, uniform) for row in scores]
        assert Sampler(states, CPU)(scores).tolist() == expected


def processors_of(sampling, **config):
    """Those of a base with this generation config."""
    model = SimpleNamespace(generation_config=GenerationConfig(**config), device=CPU)
    config = generation_config(model, sampling, [2])
    return {name for name, value in config.to_diff_dict().items() if value is not None}, config


def test_a_requests_repetition_penalty_replaces_the_bases():
    assert processors_of(PLAIN, repetition_penalty=1.5)[1].repetition_penalty == 1.5
    assert processors_of(given(repetition_penalty=1.2), repetition_penalty=1.5)[1].repetition_penalty is None


def test_what_contradicts_a_grammar_is_left_out_of_the_bases_settings():
    base = {"forced_eos_token_id": 2, "min_new_tokens": 5, "suppress_tokens": [7]}
    assert {"forced_eos_token_id", "min_new_tokens", "suppress_tokens"} <= processors_of(PLAIN, **base)[0]
    kept = processors_of(given(json_schema="{}"), **base)[0]
    assert "suppress_tokens" in kept and not {"forced_eos_token_id", "min_new_tokens"} & kept
