"""The grouped pass over a stack equals the one over copies of its adapters."""

import pytest
import torch
from test_stacked_lora import adapters, llama
from torch import nn

from raytune_llm.models.adapter_route import LayerViews
from raytune_llm.models.base import linear_targets
from raytune_llm.models.fp32_head import use_fp32_head
from raytune_llm.models.grouped_lora import GroupedRoute, can_group, is_aligned
from raytune_llm.models.stacked_lora import AdapterStack

ROWS = [[2, 0, 4, 2, 1, 4], [0, 0, 0, 0, 0, 0], [4] * 6, [1, 4, 4, 4, 4, 0]]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


def stack_of(model, names=None):
    names = names or linear_targets(model)
    stack = AdapterStack(model, names, capacity=4, max_lora_rank=8)
    for slot, weights in enumerate(adapters(llama(torch.float32))):
        generator = torch.Generator().manual_seed(slot)
        rank = next(iter(weights.values()))[0].shape[0]
        drawn = {
            name: weights.get(
                name,
                tuple(
                    0.3 * torch.randn(shape, generator=generator)
                    for shape in ((rank, stack.layers[name].in_features), (stack.layers[name].out_features, rank))
                ),
            )
            for name in names
        }
        stack.write(slot, drawn, 1.5)
    return stack


def logits(stack, route, ids, **options):
    with torch.inference_mode(), stack.routed(route):
        return stack.model(ids, **options).logits


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("slots", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grouped_rows_equal_gathered_ones(dtype, slots, length):
    stack = stack_of(llama(dtype))
    ids = torch.randint(1, 60, (6, length), generator=torch.Generator().manual_seed(1))
    layers = stack.span(0, stack.capacity + 1).layers
    assert is_aligned(layers)
    found = logits(stack, GroupedRoute(layers, slots), ids)
    expected = logits(stack, stack.gather(slots)[0], ids)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert stack.route is None and stack.mixed is None


def test_a_route_changes_in_place():
    stack = stack_of(llama(torch.float32))
    ids = torch.arange(1, 7)[:, None]
    route = GroupedRoute(stack.span(0, stack.capacity + 1).layers, ROWS[0])
    tensors = route._numbers, route._ends
    for slots in ROWS:
        route.update(slots)
        expected = logits(stack, stack.gather(slots)[0], ids)
        torch.testing.assert_close(logits(stack, route, ids), expected, rtol=2e-5, atol=2e-5)
    assert (route._numbers, route._ends) == tensors


@pytest.mark.parametrize("slots", ROWS)
def test_an_adapted_head_in_half_precision_gives_fp32_logits(slots):
    model = llama(torch.bfloat16)
    use_fp32_head(model)
    stack = stack_of(model, ["model.layers.0.mlp.up_proj", "lm_head"])
    ids = torch.randint(1, 60, (6, 4), generator=torch.Generator().manual_seed(1))
    hidden = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    routes = [GroupedRoute(stack.span(0, stack.capacity + 1).layers, slots), stack.gather(slots)[0]]
    found, expected = (logits(stack, route, ids) for route in routes)
    hook.remove()
    assert found.dtype == expected.dtype == torch.float32
    for each, states in zip((found, expected), hidden, strict=True):
        head = stack.gather(slots)[0].layers[1]
        a, b = head.a.double(), head.b.double()
        exact = states.double() @ model.lm_head.weight.double().T + (states.double() @ a.transpose(1, 2)) @ b
        torch.testing.assert_close(each.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_nan_adapter_spoils_its_own_rows_only():
    stack = stack_of(llama(torch.float32))
    ids = torch.randint(1, 60, (4, 5), generator=torch.Generator().manual_seed(1))
    layers = stack.span(0, stack.capacity + 1).layers
    clean = logits(stack, GroupedRoute(layers, [0, 1, 2, 4]), ids)
    stack.table[1] = float("nan")
    spoiled = logits(stack, GroupedRoute(layers, [0, 1, 2, 4]), ids)
    assert torch.equal(clean[[0, 2, 3]], spoiled[[0, 2, 3]]) and spoiled[1].isnan().all()


def test_what_is_not_aligned_or_has_no_kernel_is_not_grouped():
    for rank, width in ((8, 12), (4, 16)):
        view = torch.zeros(3, rank, width, dtype=torch.bfloat16)
        assert not is_aligned([LayerViews(view, view, None, None)])
    stack = stack_of(llama(torch.bfloat16))
    assert not can_group(stack.table, stack.span(0, 5).layers)  # no kernel of its own on a CPU
    assert type(stack.model.lm_head) is nn.Linear
