"""The parity check accepts right adapters of half-precision bases with large logits, and no wrong or missing ones."""

import dataclasses
import math

import pytest
import torch
from serving_world import ENGINE, make_base, write_adapter

from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.models.base import DType
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import PROBES, ParityError, ProbeResult, check_parity
from raytune_llm.serving.verify.reference import GreedyAnswer


def served(base, id, kind, folder):
    tokens = Tokens(base.tokenizer(), max_tokens=128, is_encoder_decoder=False)
    return ServedModel(id, kind, folder, tokens, tuple(tokens.stop_ids()))


@pytest.fixture(scope="module", params=[(seed, scale) for seed in range(3) for scale in (1, 3, 5)])
def world(request, tmp_path_factory):
    """A random base in bf16 with scaled head rows, and an adapter of it."""
    seed, scale = request.param
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "base", seed=seed)
    model = base.load()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(root / "base")
    base = dataclasses.replace(base, dtype=DType.bfloat16)
    return base, served(base, "right", "adapter", write_adapter(base, root / "right", seed=1)), scale, root


def checked(base, model, change=None):
    engine = ENGINE.load(base, max_running=4)
    engine.add(served(base, "base", "base", None))
    engine.add(model)
    if change is not None:
        cache = engine._resident.adapter_cache
        engine._between_steps(lambda: change(cache._stack, cache._slots[model.id]))
    try:
        return check_engine(engine, model, PROBES)
    finally:
        engine.close()


def test_a_right_adapter_passes_however_large_the_logits_are(world):
    base, model, scale, _ = world
    prompts = [model.tokens.prompt(probe) for probe in PROBES]
    largest = max(base.load()(torch.tensor([prompt])).logits.abs().max() for prompt in prompts)
    result = checked(base, model)
    assert result.base_difference_nats > 20 * result.reference_difference_nats
    assert scale < 5 or 16 < largest < 64


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.25, 2.0])
def test_a_missing_adapter_or_a_wrong_scale_fails(world, factor):
    base, model, _, _ = world

    def change(stack, slot):
        stack.table[slot, stack.layout.b] *= factor

    with pytest.raises(ParityError, match="is not what was tuned"):
        checked(base, model, change)


def test_another_adapter_fails(world):
    base, model, _, root = world
    other = write_adapter(base, root / "other", seed=2)

    def change(stack, slot):
        engine = ENGINE.load(base, max_running=1)
        stack.write(slot, engine._resident.prepare(served(base, "other", "adapter", other)).weights, 1.0)
        engine.close()

    with pytest.raises(ParityError, match="is not what was tuned"):
        checked(base, model, change)


def probe(served, reference, base_difference, tokens="abcd"):
    """A probe whose first position has these log-probabilities."""
    tops = [[list(zip(texts, logprobs, strict=False))] for texts, logprobs in ((tokens, served), ("abcd", reference))]
    return ProbeResult("The", GreedyAnswer("x", tops[0]), GreedyAnswer("x", tops[1]), base_difference)


def test_half_precision_bounds_the_root_mean_square_and_full_precision_each_value():
    reference = [-1.0, -2.0, -3.0, -4.0]
    found = check_parity("m", "", [probe([-1.0, -2.0, -3.0, -4.18], reference, 1.0)], "torch.bfloat16")
    assert found.reference_difference_nats == pytest.approx(0.09)
    all_off = [-1.12, -2.12, -3.12, -4.12]
    with pytest.raises(ParityError, match=r"0\.12 nats off PEFT's \(allowed: 0\.1\)"):
        check_parity("m", "", [probe(all_off, reference, 1.0)], "torch.bfloat16")
    assert 0.12 / math.sqrt(2) < 0.05 * 3 / math.sqrt(2)
    check_parity("m", "", [probe(all_off, reference, 3.0), probe(reference, reference, 0.0)], "torch.bfloat16")
    with pytest.raises(ParityError, match=r"is not what was tuned: after 'The' its log-probabilities are 0\.00018"):
        check_parity("m", "", [probe([-1.00018], [-1.0], 1.0)], "torch.float32")
    check_parity("m", "", [probe([-1.00005], [-1.0], 1.0)], "torch.float32")


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float32"])
def test_tokens_are_compared_by_their_texts(dtype):
    reference = [-1.0, -2.0, -3.0, -4.0]
    check_parity("m", "", [probe([-2.0, -1.0], reference, 1.0, tokens="ba")], dtype)
    for tokens in ("ab", "ax"):  # another order, and a token that the reference hardly has
        with pytest.raises(ParityError, match="is not what was tuned"):
            check_parity("m", "", [probe([-2.0, -1.0], reference, 1.0, tokens=tokens)], dtype)


def test_a_version_that_changes_nothing_fails():
    with pytest.raises(ParityError, match="can't be distinguished from its base"):
        check_parity("m", "", [probe([-1.0], [-1.0], 0.2)], "torch.bfloat16")
