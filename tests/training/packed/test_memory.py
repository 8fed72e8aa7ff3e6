"""Estimates of memory against what is really allocated."""

import gc
from pathlib import Path

import pytest
import torch
from packed_oracle import make_examples, make_model, make_pack, make_spec, sft_terms, table_of

from raytune_llm.models.base import linear_targets
from raytune_llm.training.packed.checkpointing import num_blocks
from raytune_llm.training.packed.memory import choose_capacity, fit_tokens, slot_bytes, token_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_slot_bytes_are_those_of_the_tables(dtype):
    model = make_model(dtype=dtype)
    expected = slot_bytes(model, linear_targets(model), 4)
    pack = make_pack(model, capacity=3, max_lora_rank=4)
    stack = pack.stack
    tables = [stack.theta, stack.grad, pack.optimizer.m, pack.optimizer.v, stack.table[:3]]
    assert sum(table.numel() * table.element_size() for table in tables) == 3 * expected


def test_capacity_keeps_half_of_the_budget_for_activations():
    model = make_model()
    names = linear_targets(model)
    each = slot_bytes(model, names, 8)
    assert choose_capacity(model, names, 8, wanted=16, budget_bytes=10 * each) == 5
    assert choose_capacity(model, names, 8, wanted=3, budget_bytes=10 * each) == 3
    with pytest.raises(ValueError, match="must hold two"):
        choose_capacity(model, names, 8, wanted=3, budget_bytes=each)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_checkpointing_by_need(kind):
    pack = make_pack(make_model(kind))
    kept = token_bytes(pack)
    tables = pack.num_bytes + pack.gathered_bytes
    assert fit_tokens(pack, 100, budget_bytes=tables + int(1000 * kept)) == pytest.approx(800, abs=1)
    assert not pack.checkpointing
    tokens = fit_tokens(pack, 100, budget_bytes=tables + int(110 * kept))
    assert pack.checkpointing and tokens >= 100
    one_block = kept / num_blocks(pack.model)
    assert one_block < token_bytes(pack) < one_block + kept / 2


def own_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


def test_a_pack_fed_200_trials_keeps_its_size():
    pack = make_pack(make_model(), capacity=16, max_lora_rank=4)
    table = table_of(make_examples(20), pack.model)
    sizes = []
    for trial in range(200):
        if len(pack.trial_ids) == 16:
            pack.state(pack.trial_ids[trial % 16])
            pack.leave(pack.trial_ids[trial % 16])
            if trial in (48, 199):
                gc.collect()  # what other tests of this process left would be freed at any time
                sizes.append(own_bytes())
        pack.join(
            make_spec(f"t{trial}", seed=trial, lora_rank=1 + trial % 4, batch_size=1 + trial % 2), table, sft_terms
        )
        if trial % 10 == 0:
            pack.step()
    assert sizes[1] - sizes[0] < 4e6  # one trial's tables, kept by mistake, would be 151 times 0.1 MB
