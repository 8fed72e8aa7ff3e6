"""A step over rows that read their own adapters equals the one over copies of these. The kernels are replaced by the
same products here; by themselves they run on a GPU only."""

import logging

import pytest
import torch
from test_grouped_lora import ROWS, TOLERANCE, logits, stack_of
from test_stacked_lora import llama

from raytune_llm.models import row_lora
from raytune_llm.models.base import linear_targets
from raytune_llm.models.decoding.routes import StackRoutes
from raytune_llm.models.fp32_head import use_fp32_head
from raytune_llm.models.grouped_lora import GroupedRoute
from raytune_llm.models.row_lora import RowRoute, check_kernels, row_kernels, stacked


class Products:
    """What the kernels compute, in two parts of the inputs."""

    def __init__(self, factor=1.0):
        self.factor, self.groups = factor, []

    def shrink(self, x, a, slots):
        self.groups.append(a.shape[1])
        middle = x.shape[1] // 2
        parts = [
            torch.einsum("bi,bgri->gbr", part.double(), side.double())
            for part, side in ((x[:, :middle], a[slots][..., :middle]), (x[:, middle:], a[slots][..., middle:]))
        ]
        return self.factor * torch.stack(parts, dim=2)

    def expand(self, h, b, slots, y):
        y.copy_(y.double() + torch.einsum("br,bro->bo", h.sum(1), b[slots].double()))


def step_of(stack, ids):
    return lambda route: logits(stack, route, ids)


@pytest.mark.parametrize("slots", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_equal_gathered_ones(dtype, slots):
    stack = stack_of(llama(dtype))
    step = step_of(stack, torch.randint(1, 60, (6, 1), generator=torch.Generator().manual_seed(1)))
    route = RowRoute(stack.span(0, stack.capacity + 1).layers, slots, Products())
    expected = step(stack.gather(slots)[0])
    for _ in range(2):
        torch.testing.assert_close(step(route), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_slots_change_in_place():
    stack = stack_of(llama(torch.float32))
    step = step_of(stack, torch.arange(1, 7)[:, None])
    route = RowRoute(stack.span(0, stack.capacity + 1).layers, ROWS[0], Products())
    place = route._slots.data_ptr()
    for slots in ROWS:
        route.update(slots)
        torch.testing.assert_close(step(route), step(stack.gather(slots)[0]), rtol=2e-5, atol=2e-5)
    assert route._slots.data_ptr() == place


def test_layers_that_read_the_same_share_their_first_kernel_from_the_second_step_on():
    stack = stack_of(llama(torch.float32))
    step, kernels = step_of(stack, torch.arange(1, 7)[:, None]), Products()
    route = RowRoute(stack.span(0, stack.capacity + 1).layers, ROWS[0], kernels)
    blocks = stack.model.config.num_hidden_layers
    step(route)
    first = kernels.groups.copy()
    kernels.groups.clear()
    step(route)
    # queries, keys and values; their output; gate and up; down
    assert kernels.groups == [3, 1, 2, 1] * blocks
    assert first == [1, 2, 3, 1, 1, 2, 1] * blocks  # each of these shapes was computed before


def test_layers_that_lie_apart_or_read_other_tensors_are_computed_alone():
    stack = stack_of(llama(torch.float32), ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"])
    step, kernels = step_of(stack, torch.arange(1, 7)[:, None]), Products()
    layers = stack.span(0, stack.capacity + 1).layers
    route = RowRoute(layers, ROWS[0], kernels)
    for _ in range(2):
        torch.testing.assert_close(step(route), step(stack.gather(ROWS[0])[0]), rtol=2e-5, atol=2e-5)
    assert kernels.groups == [1] * 4
    names = linear_targets(llama(torch.float32))
    every = stack_of(llama(torch.float32), names).span(0, 5).layers
    assert stacked(every[:3]).shape[1] == 3  # queries, keys and values
    assert stacked([every[0], every[1], every[3]]) is None and stacked([every[2], layers[0]]) is None
    assert stacked(every[5:7]) is None  # of other widths


def test_the_same_layer_twice_reads_its_adapters_again():
    stack = stack_of(llama(torch.float32))
    route = RowRoute(stack.span(0, stack.capacity + 1).layers, ROWS[0], Products())
    layer = next(iter(stack.layers.values())).base
    x = torch.randn(6, 1, layer.in_features)
    with torch.inference_mode():
        before = route.linear(x, layer, 0)
        stack.table[:4].mul_(2)
        after = route.linear(x, layer, 0)
        plain = layer(x)
    torch.testing.assert_close(after - plain, 4 * (before - plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", ROWS)
def test_an_adapted_head_in_half_precision_gives_fp32_logits(slots):
    model = llama(torch.bfloat16)
    use_fp32_head(model)
    stack = stack_of(model, ["model.layers.0.mlp.up_proj", "lm_head"])
    step = step_of(stack, torch.arange(1, 7)[:, None])
    found = step(RowRoute(stack.span(0, stack.capacity + 1).layers, slots, Products()))
    expected = step(stack.gather(slots)[0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=6e-2, atol=6e-2)


def test_a_nan_adapter_spoils_its_own_rows_only():
    stack = stack_of(llama(torch.float32))
    step = step_of(stack, torch.arange(1, 5)[:, None])
    route = RowRoute(stack.span(0, stack.capacity + 1).layers, [0, 1, 2, 4], Products())
    clean = step(route)
    stack.table[1] = float("nan")
    spoiled = step(route)
    assert torch.equal(clean[[0, 2, 3]], spoiled[[0, 2, 3]]) and spoiled[1].isnan().all()


def test_rows_go_before_groups_and_copies_only_where_there_are_kernels():
    stack = stack_of(llama(torch.float32))
    routes = StackRoutes(stack)
    assert routes.row_kernels is None  # no GPU here
    for kernels, is_grouped, expected in (
        (Products(), True, RowRoute),
        (Products(), False, RowRoute),
        (None, True, GroupedRoute),
        (None, False, type(stack.gather([0])[0])),
    ):
        routes.row_kernels, routes.is_grouped = kernels, is_grouped
        route, rank = routes.fixed_route([0, None, 2])
        assert type(route) is expected and rank == 8
        if expected is not type(stack.gather([0])[0]):
            assert routes.fixed_route([1, 2, None])[0] is route
        assert routes.fixed_route([None, None]) == (None, 0)
        assert not isinstance(routes.route([0, None, 2]), RowRoute)  # prompts have many tokens


def test_kernels_are_compared_before_they_are_used(monkeypatch, caplog):
    check_kernels(Products(), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"off by 0\.1 of its size"):
        check_kernels(Products(1.1), torch.device("cpu"))
    table = torch.empty(0, dtype=torch.bfloat16, device="meta")
    assert row_kernels(table, 8) is None and row_kernels(torch.empty(0), 8) is None
    row_lora._tried_kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(row_lora, "check_kernels", lambda kernels, device: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert row_lora._tried_kernels(torch.device("cuda")) is None
        assert row_lora._tried_kernels(torch.device("cuda")) is None
    row_lora._tried_kernels.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "without the kernels for rows: " in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only there are the kernels compiled")
def test_on_a_gpu_the_kernels_pass_their_own_check():
    table = torch.empty(0, dtype=torch.bfloat16, device="cuda")
    assert row_kernels(table, 8) is not None
