"""Answers decoded together are those of transformers' generate, prompt by prompt and adapter by adapter."""

import itertools
import random

import pytest
import torch
from test_batch import SHAPES, SMALL
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    FalconConfig,
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from raytune_llm.data import demo
from raytune_llm.models.attention import use_maskless_attention
from raytune_llm.models.base import linear_targets
from raytune_llm.models.decoding import greedy, kv_cache
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.masked_lora import MaskedRoute
from raytune_llm.models.stacked_lora import AdapterStack

VOCABULARY = 97
LLAMA = (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}, "sdpa")
RANKS = {0: 1, 1: 8, 3: 5}
"""Rank of each slot; slot 2 is empty."""


def base(shape):
    """A random model of the shape, in fp32."""
    model, config, more, attention = LLAMA if shape == "llama" else SHAPES[shape]
    torch.manual_seed(0)
    made = model(config(vocab_size=VOCABULARY, **SMALL, **more)).eval()
    made.set_attn_implementation(attention)
    return made


def stacked(model, *, trainable=False, std=0.1):
    """A stack with an adapter of each rank on all linear layers."""
    names = linear_targets(model)
    stack = AdapterStack(model, names, capacity=4, max_lora_rank=8, trainable=trainable)
    for slot, rank in RANKS.items():
        torch.manual_seed(slot + 1)
        weights = {
            name: (std * torch.randn(rank, layer.in_features), std * torch.randn(layer.out_features, rank))
            for name, layer in stack.layers.items()
        }
        stack.write(slot, weights, 1.5)
    return stack


def work(count, longest, vocabulary, seed=0):
    """Prompts of many lengths, some of them for several adapters, in an order of their own."""
    draw = random.Random(seed)
    prompts = [[draw.randrange(3, vocabulary) for _ in range(draw.randint(1, longest))] for _ in range(count)]
    pairs = [(prompt, slot) for i, prompt in enumerate(prompts) for slot in (None, *RANKS)[: 1 + i % 4]]
    draw.shuffle(pairs)
    return [prompt for prompt, _ in pairs], [slot for _, slot in pairs]


def generated(model, stack, prompt, slot, *, stop_ids, max_new_tokens):
    """What transformers' generate gives for one prompt alone."""
    from raytune_llm.evaluation.generate import generate

    kept = []

    class Ids:
        pad_token_id = 0

        def decode(self, ids, skip_special_tokens):
            kept.append(ids)
            return ""

    route = None if slot is None else stack.span(slot, slot + 1)
    with stack.routed(route):
        generate(model, Ids(), [prompt], max_new_tokens=max_new_tokens, stop_ids=stop_ids, batch_size=1)
    return kept[0]


def stop_ids_within(answers):
    """Three tokens that end some of the answers, if possible after a few tokens, and leave most of them whole."""
    counts = {token: sum(token in answer for answer in answers) for answer in answers for token in answer[1:]}
    later = {token for answer in answers for token in answer[1:] if token != answer[0]}
    return sorted((t for t in later if counts[t] * 4 <= len(answers)), key=lambda t: (-counts[t], t))[:3]


@pytest.mark.parametrize("shape", ["llama", *SHAPES])
def test_answers_are_those_of_generate(shape):
    model = base(shape)
    stack = stacked(model)
    prompts, slots = work(14, 60, VOCABULARY)
    options = {"stop_ids": [], "max_new_tokens": 12}
    whole = [generated(model, stack, *pair, **options) for pair in zip(prompts, slots, strict=True)]
    stop_ids = stop_ids_within(whole)
    options = {"stop_ids": stop_ids, "max_new_tokens": 12}
    expected = [generated(model, stack, *pair, **options) for pair in zip(prompts, slots, strict=True)]
    lengths = {len(answer) for answer in expected}
    assert 12 in lengths and len(lengths) > 3 and len({tuple(answer) for answer in expected}) > len(prompts) // 2
    for max_rows in (1, 5, 64):
        assert greedy_answers(model, prompts, slots, stack=stack, max_rows=max_rows, **options) == expected


def test_answers_of_the_demo_base():
    model = LlamaForCausalLM.from_pretrained(demo.path("base"), dtype=torch.float32).eval()
    stack = stacked(model, std=0.05)
    prompts, slots = work(6, 40, model.config.vocab_size)
    options = {"stop_ids": [model.config.eos_token_id], "max_new_tokens": 16}
    expected = [generated(model, stack, *pair, **options) for pair in zip(prompts, slots, strict=True)]
    assert greedy_answers(model, prompts, slots, stack=stack, max_rows=8, **options) == expected


def test_a_stack_that_is_being_trained_on_a_base_without_masks_answers_and_is_left_as_it_was():
    model = base("llama")
    prompts, slots = work(8, 30, VOCABULARY)
    options = {"stop_ids": [2], "max_new_tokens": 8, "max_rows": 6}
    plain = stacked(model)
    expected = greedy_answers(model, prompts, slots, stack=plain, **options)
    plain.remove()
    stack = stacked(model, trainable=True)
    model.train()
    with use_maskless_attention(model):
        assert greedy_answers(model, prompts, slots, stack=stack, **options) == expected
        ids = torch.tensor([[5, 6, 7]])
        with stack.routed(stack.span(0, 2)):
            model(input_ids=ids.repeat(2, 1), use_cache=False).logits.sum().backward()
    assert model.training and stack.grad[:2].abs().sum() > 0 and stack.route is None and stack.mixed is None


def test_an_adapter_that_is_not_finite_spoils_its_own_answers_only():
    model = base("llama")
    stack = stacked(model)
    prompts, slots = work(12, 30, VOCABULARY)
    options = {"stop_ids": [2], "max_new_tokens": 8, "max_rows": 6}
    expected = greedy_answers(model, prompts, slots, stack=stack, **options)
    stack.table[1] = float("nan")
    found = greedy_answers(model, prompts, slots, stack=stack, **options)
    others = [i for i, slot in enumerate(slots) if slot != 1]
    assert [found[i] for i in others] == [expected[i] for i in others] and found != expected


class Further:
    """Reads most prompts with some tokens after them."""

    def __init__(self, model, prompts):
        self._model, self._rows = model, [prompt + [5 + i % 7] * (i % 5) for i, prompt in enumerate(prompts)]
        self.lengths = {i: len(row) for i, row in enumerate(self._rows) if i % 7 != 3}
        self.passes = []

    def read(self, places):
        self.passes.append(list(places))
        cache, rows = DynamicCache(), [self._rows[place] for place in places]
        width = max(map(len, rows))
        self._model(torch.tensor([row + [0] * (width - len(row)) for row in rows]), past_key_values=cache)
        return cache


@pytest.mark.parametrize("shape", ["llama", *SHAPES])
def test_prompts_may_be_read_with_what_follows_them(shape):
    model = base(shape)
    stack = stacked(model)
    prompts, slots = work(14, 60, VOCABULARY)
    prompts = [prompt * 2 for prompt in prompts]  # two tokens at least
    options = {"stop_ids": range(2, VOCABULARY, 8), "max_new_tokens": 9, "stack": stack}
    expected = greedy_answers(model, prompts, slots, max_rows=8, **options)
    assert len({len(answer) for answer in expected}) > 1
    for max_rows in (1, 5, 64):
        reader = Further(model, prompts)
        assert greedy_answers(model, prompts, slots, max_rows=max_rows, reader=reader, **options) == expected
        assert sorted(itertools.chain(*reader.passes)) == list(reader.lengths)
        assert all(len({slots[place] for place in places}) == 1 for places in reader.passes)
    alone = {"stop_ids": range(2, VOCABULARY, 8), "max_new_tokens": 9, "stack": None, "max_rows": 5}
    none = [None] * len(prompts)
    expected = greedy_answers(model, prompts, none, **alone)
    assert greedy_answers(model, prompts, none, reader=Further(model, prompts), **alone) == expected


def test_without_adapters_the_base_answers():
    model = base("llama")
    prompts, _ = work(6, 30, VOCABULARY)
    options = {"stop_ids": [2], "max_new_tokens": 8}
    expected = greedy_answers(model, prompts, [None] * len(prompts), stack=None, max_rows=1, **options)
    assert greedy_answers(model, prompts, [None] * len(prompts), stack=None, max_rows=8, **options) == expected
    assert greedy_answers(model, [], [], stack=None, max_rows=8, **options) == []
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        greedy_answers(model, [[5], []], [None, None], stack=None, max_rows=8, **options)
    with pytest.raises(ValueError, match="prompt 0 has the adapter 3, but there is no stack"):
        greedy_answers(model, [[5]], [3], stack=None, max_rows=8, **options)


def test_equal_prompts_are_read_in_one_pass_and_rows_of_any_adapter_share_a_step(monkeypatch):
    model = base("llama")
    stack = stacked(model)
    read, mixed = [], []
    whole, linear = greedy.read_prompts, MaskedRoute.linear

    def watch_prompts(model, adapters, prompts, ids):
        read.append((sorted(map(tuple, prompts)), ids))
        return whole(model, adapters, prompts, ids)

    def watch_linear(self, x, layer, index):
        mixed.append(x.shape)
        return linear(self, x, layer, index)

    monkeypatch.setattr(greedy, "read_prompts", watch_prompts)
    monkeypatch.setattr(MaskedRoute, "linear", watch_linear)
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7], [8, 9], [5, 6, 7], [8, 9]]
    slots = [0, 0, None, None, 3, 3]
    greedy_answers(model, prompts, slots, stack=stack, stop_ids=[], max_new_tokens=3, max_rows=6)
    assert read == [(sorted(map(tuple, prompts)), [None, None, 0, 0, 3, 3])]
    assert not mixed  # two rows of each adapter share a pass without copies for each row
    greedy_answers(model, prompts[:5], slots[:5], stack=stack, stop_ids=[], max_new_tokens=3, max_rows=6)
    assert {shape[0] for shape in mixed} == {5}


def test_rows_wait_for_room_in_the_cache_and_a_lack_of_memory_halves_them(monkeypatch):
    model = base("llama")
    stack = stacked(model)
    prompts, slots = work(10, 60, VOCABULARY)
    options = {"stop_ids": [2], "max_new_tokens": 70}
    expected = greedy_answers(model, prompts, slots, stack=stack, max_rows=16, **options)
    rows, step = [], greedy.DecodingStep.logits

    def limited(self):
        rows.append(self._kv_cache.num_rows)
        if rows[-1] > limit:
            raise torch.OutOfMemoryError("no memory")
        return step(self)

    monkeypatch.setattr(greedy.DecodingStep, "logits", limited)
    limit = 4
    assert greedy_answers(model, prompts, slots, stack=stack, max_rows=16, **options) == expected
    assert rows[0] == 16 and max(rows[2:]) <= 4
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        greedy_answers(model, prompts, slots, stack=stack, max_rows=16, **options)
    limit = 16
    column_bytes = 3 * 2 * 2 * 8 * 4
    monkeypatch.setattr(greedy, "default_budget", lambda device: 2 * 2 * kv_cache.COLUMN_STEP * column_bytes)
    rows.clear()
    assert greedy_answers(model, prompts, slots, stack=stack, max_rows=16, **options) == expected
    assert 2 <= max(rows) <= 4


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
        FalconConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=True),
    ],
    ids=["local attention", "alibi"],
)
def test_bases_that_hide_positions_by_columns_are_not_batched(config):
    """Rows of different lengths would attend to others' padding; GPT-Neo's answers were wrong without an error."""
    config.vocab_size = VOCABULARY
    assert not can_batch(AutoModelForCausalLM.from_config(config))
