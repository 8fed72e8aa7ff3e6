"""Divergence and entropy against their definitions, written out token by token; samples; repetition; wins."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_loss import tiny

from raytune_llm.data.examples import Rollout
from raytune_llm.evaluation.policy import (
    PolicyPrompt,
    Sampling,
    divergence,
    policy_directions,
    policy_metrics,
    repetition,
    roll_out,
    win_rate,
)

SAMPLING = Sampling(max_new_tokens=6, temperature=0.7, stop_ids=(2,), pad_id=0, batch_size=2, seed=3)
PROMPTS = [PolicyPrompt([5, 6, 7], "a", ""), PolicyPrompt([8, 9], "b", ""), PolicyPrompt([10, 11, 12, 13], "c", "")]


def other():
    model = copy.deepcopy(tiny())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_divergence_and_entropy_are_sums_over_the_visited_positions():
    policy, reference = tiny().eval(), other()
    rollouts = roll_out(policy, PROMPTS, SAMPLING, str)
    kl, entropy = divergence(policy, lambda: nullcontext(reference), rollouts, SAMPLING)
    for row, rollout in enumerate(rollouts):
        expected_kl = expected_entropy = 0.0
        for place in range(len(rollout.completion_ids)):
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids[:place]])
            with torch.no_grad():
                p, q = ((m(ids).logits[0, -1] / 0.7).softmax(-1).double() for m in (policy, reference))
            expected_kl += (p * (p / q).log()).sum().item()
            expected_entropy -= (p * p.log()).sum().item()
        assert kl[row] == pytest.approx(expected_kl, rel=1e-4)
        assert entropy[row] == pytest.approx(expected_entropy, rel=1e-4)
    same, _ = divergence(policy, lambda: nullcontext(policy), rollouts, SAMPLING)
    assert np.abs(same).max() < 1e-9


def test_a_seed_draws_the_same_completions_and_leaves_other_streams_alone():
    model = tiny()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, again = (roll_out(model, PROMPTS, SAMPLING, str) for _ in range(2))
    assert one == again and torch.equal(before, torch.random.get_rng_state()) and model.training
    for rollout in one:
        assert 1 <= len(rollout.completion_ids) <= 6
        assert rollout.ended == (rollout.completion_ids[-1] == 2) and 2 not in rollout.completion_ids[:-1]


def test_the_objective_is_reward_less_the_price_of_divergence():
    rollouts = [Rollout([1], [4, 2], "", "", "", True), Rollout([1], [4, 5, 6], "", "", "", False)]
    rewards, kl, entropy = np.array([1.0, 3.0]), np.array([2.0, 1.0]), np.array([0.5, 2.0])
    metrics = policy_metrics(rollouts, rewards, kl, entropy, {"win_rate": np.array([1.0, 0.5])}, kl_coefficient=0.25)
    found = {name: metric.whole() for name, metric in metrics.items()}
    assert found == pytest.approx(
        {
            "eval/objective": (0.5 + 2.75) / 2,
            "eval/reward": 2.0,
            "eval/kl": 1.5,
            "eval/kl_per_token": 3.0 / 5,
            "eval/win_rate": 0.75,
            "eval/entropy": 2.5 / 5,
            "eval/completion_tokens": 2.5,
            "eval/ended": 0.5,
            "eval/repetition": 0.0,
        }
    )
    assert policy_directions(["win_rate"]) == {name: metric.better for name, metric in metrics.items()}


def test_repetition_counts_four_grams_that_occurred_before():
    assert repetition([1, 2, 3]) == 0.0 and repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 8) == pytest.approx(4 / 5)
    assert math.isclose(repetition([1, 2, 3, 4, 1, 2, 3, 4]), 1 / 5)


def test_a_tie_is_half_a_win():
    assert win_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])).tolist() == [1.0, 0.5, 0.0]
