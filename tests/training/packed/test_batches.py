"""Cuts are complete, ordered where they must be, within their bounds, and the cheapest."""

import itertools

import numpy as np
import pytest
from packed_oracle import TwoTerms, make_examples, sft_terms

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.training.packed.batches import (
    PassBudget,
    StepRows,
    TokenTable,
    cheapest_splits,
    split_shared,
    split_step,
)


def cost(lengths, width, budget, ends):
    total, start = 0, 0
    for end in ends:
        tokens = (end - start) * width * lengths[start]
        if tokens > budget.max_tokens and end - start > 1:
            return float("inf")
        total, start = total + budget.overhead_tokens + tokens, end
    return total


@pytest.mark.parametrize("overhead", [0, 10, 100])
@pytest.mark.parametrize("max_tokens", [20, 60, 10_000])
def test_cheapest_cuts_are_the_cheapest_of_all(overhead, max_tokens):
    generator = np.random.default_rng(overhead + max_tokens)
    for _ in range(20):
        lengths = np.sort(generator.integers(4, 30, size=7))[::-1]
        budget = PassBudget(9, max_tokens, overhead)
        found = cheapest_splits(lengths, 2, budget)
        every = ([*part, 7] for size in range(7) for part in itertools.combinations(range(1, 7), size))
        assert found[-1] == 7
        assert cost(lengths, 2, budget, found) == min(cost(lengths, 2, budget, ends) for ends in every)


def steps(table, *, per_pass=None, slots=5, batch_size=6):
    generator = np.random.default_rng(0)
    return [
        StepRows(slot, table, generator.integers(0, table.num_examples, batch_size), per_pass) for slot in range(slots)
    ]


@pytest.mark.parametrize("per_pass", [None, 4])
@pytest.mark.parametrize(
    "budget", [PassBudget(8, 10_000, 50), PassBudget(2, 10_000, 0), PassBudget(8, 60, 5), PassBudget(1, 1, 0)]
)
def test_every_row_goes_once_and_ordered_parts_keep_their_order(budget, per_pass):
    table = TokenTable(make_examples(30), is_encoder_decoder=False)
    wanted = steps(table, per_pass=per_pass)
    seen: dict[int, list[list[int]]] = {}
    for micro_pack in split_step(wanted, budget):
        assert len(micro_pack.slots) <= budget.slots_per_pass
        smallest = 1 if per_pass is None else per_pass
        assert micro_pack.padded_tokens <= budget.max_tokens or micro_pack.rows.size <= smallest
        for slot, rows in zip(micro_pack.slots, micro_pack.rows, strict=True):
            seen.setdefault(slot, []).append(rows.tolist())
    for step in wanted:
        rows = step.rows.tolist()
        if per_pass is None:
            assert sorted(itertools.chain(*seen[step.slot])) == sorted(rows)
        else:
            assert seen[step.slot] == [rows[:4], rows[4:]]


def test_buckets_pad_less():
    table = TokenTable(make_examples(200), is_encoder_decoder=False)
    wanted = steps(table, slots=8, batch_size=8)
    one_pass = sum(pack.padded_tokens for pack in split_step(wanted, PassBudget(8, 10**9, 10**9)))
    bucketed = sum(pack.padded_tokens for pack in split_step(wanted, PassBudget(8, 10**9, 16)))
    own = sum(int(table.lengths[step.rows].sum()) for step in wanted)
    assert own < bucketed < own + 0.5 * (one_pass - own)


def test_shared_parts_cover_a_table_once():
    table = TokenTable(make_examples(300), is_encoder_decoder=False)
    parts = list(split_shared(table, 4, PassBudget(4, 600, 20)))
    assert sorted(itertools.chain(*parts)) == list(range(300))
    assert all(4 * len(part) * table.lengths[part].max() <= 600 for part in parts)


def test_batches_are_padded_and_masked():
    examples = [
        {"completion": TokenSequence([5, 6, 7], [5, IGNORED, 7])},
        {"completion": TokenSequence([8, 9], [IGNORED, 9])},
    ]
    batch = TokenTable(examples, is_encoder_decoder=False).batch("completion", np.array([1, 0]))
    assert batch.input_ids.tolist() == [[8, 9, 0], [5, 6, 7]]
    assert batch.labels.tolist() == [[IGNORED, 9, IGNORED], [5, IGNORED, 7]]
    assert batch.mask.tolist() == [[False, True, False], [False, False, True]]  # the first token can't be predicted
    assert batch.where.tolist() == [1, 5]
    encoder = TokenTable(examples, is_encoder_decoder=True).batch("completion", np.array([0]))
    assert encoder.input_ids.shape == (1, 3) and encoder.labels.shape == (1, 4)  # never of equal width
    assert encoder.mask.tolist() == [[True, False, True, False]]


def test_weights_of_examples_need_no_model():
    examples = make_examples(10, names=("label", "reason"))
    found = TokenTable(examples, is_encoder_decoder=False).weights(TwoTerms(0.3).terms, chunk=3)
    assert found["label_loss"].tolist() == [sum(x != IGNORED for x in e["label"].labels[1:]) for e in examples]
    assert found["margin"].tolist() == [1.0] * 10
    sft = TokenTable(make_examples(10), is_encoder_decoder=False).weights(sft_terms)
    assert sft["loss"].tolist() == sft["token_accuracy"].tolist()


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="there are no examples"):
        TokenTable([], is_encoder_decoder=False)
