"""How packed trials are spread over devices."""

import itertools

import pytest
from worlds import write_base

from raytune_llm.data.examples import TokenSequence
from raytune_llm.jobs.config import load
from raytune_llm.sweep.plan import make_plan
from raytune_llm.sweep.runner_packed import layout, trials_that_fill_a_gpu


@pytest.mark.parametrize(
    ("num_trials", "num_devices", "slots", "fill", "expected"),
    [
        (16, 1, 16, 2, (1, 16)),  # one GPU holds all
        (40, 1, 16, 2, (1, 16)),  # or as many as it has slots
        (16, 8, 16, 1, (8, 2)),  # long steps: spread over all GPUs
        (16, 8, 16, 2, (8, 2)),
        (16, 8, 16, 4, (4, 4)),  # filled before another one is used
        (16, 8, 16, 16, (1, 16)),
        (20, 8, 16, 16, (2, 10)),  # evenly over those that are used
        (4, 8, 16, 100, (1, 4)),  # short steps of few trials: one full pack
        (100, 8, 16, 100, (7, 15)),
        (200, 8, 16, 100, (8, 16)),  # more than there are slots for
        (4, 8, 2, 100, (2, 2)),
        (1, 8, 16, 1, (1, 1)),
        (5, 0, 3, 1, (1, 3)),
    ],
)
def test_a_gpu_is_filled_before_another_one_is_used(num_trials, num_devices, slots, fill, expected):
    assert layout(num_trials, num_devices=num_devices, slots=slots, fill=fill) == expected


def test_whatever_the_numbers_all_trials_run_at_once_where_slots_allow():
    for trials, devices, slots, fill in itertools.product(range(1, 60), range(1, 10), (1, 2, 3, 16), (1, 2, 5, 40)):
        actors, each = layout(trials, num_devices=devices, slots=slots, fill=fill)
        assert 1 <= actors <= devices and 1 <= each <= slots
        assert actors * each >= min(trials, devices * slots)
        assert (actors - 1) * each < trials


def test_on_cpus_trials_spread_evenly_over_as_few_as_hold_them():
    for trials, devices, slots in itertools.product(range(1, 60), range(10), (1, 2, 3, 16)):
        each = min(slots, -(-trials // max(1, devices)))
        evenly = max(1, min(devices, -(-trials // each))), each
        assert layout(trials, num_devices=devices, slots=slots, fill=1) == evenly


@pytest.mark.parametrize(
    ("num_parameters", "tokens", "batch_size", "expected"),
    [
        (1_000_000_000, 128, 1, 16),  # 2,048 tokens fill a pass
        (1_000_000_000, 128, 8, 2),
        (1_000_000_000, 2048, 1, 1),
        (1_000_000_000, 4096, 8, 1),
        (8_000_000_000, 128, 1, 8),  # 1,024
        (8_000_000_000, 128, 8, 1),
        (125_000_000, 128, 8, 4),  # 4,096
    ],
)
def test_smaller_bases_and_shorter_steps_take_more_trials_to_fill_a_gpu(
    tmp_path, num_parameters, tokens, batch_size, expected
):
    config, plan = planned(tmp_path, f"tuning.batch_size={batch_size}")
    object.__setattr__(config.model.facts, "num_parameters", num_parameters)
    examples = [sequence(tokens - 28), sequence(tokens + 28)] if tokens > 28 else [sequence(tokens)]
    assert trials_that_fill_a_gpu(config, plan, examples) == expected
    halves = [{"chosen": sequence(tokens // 2)["completion"], "rejected": sequence(tokens // 2)["completion"]}]
    assert trials_that_fill_a_gpu(config, plan, halves) == expected


def test_the_largest_batch_of_a_sweep_counts(tmp_path):
    config, plan = planned(tmp_path, "sweep.space.tuning.batch_size=[1,8,4]")
    object.__setattr__(config.model.facts, "num_parameters", 1_000_000_000)
    assert trials_that_fill_a_gpu(config, plan, [sequence(128)]) == 2


def planned(folder, *overrides):
    job = load("sweep", [f"model.name_or_path={write_base(folder, 'llama')}", "data.train=x.jsonl", *overrides])
    config = job.trial_config()
    return config, make_plan(config, job.sweep.axes())


def sequence(num_tokens):
    return {"completion": TokenSequence([1] * num_tokens, [1] * num_tokens)}
