"""The mixture in closed form; each reward's scorer; a bad reward names its prompt."""

import math
import sys
import types

import numpy as np
import pytest

from raytune_llm.data.examples import Rollout
from raytune_llm.methods.rewards.exact import is_answer
from raytune_llm.methods.rewards.function import FunctionScorer, load_function
from raytune_llm.methods.rewards.mixture import Mixture, WeightedScorer
from raytune_llm.methods.rewards.pattern import PatternReward


def rollout(completion, answer="yes", tokens=3, ended=True):
    return Rollout([5, 6], list(range(tokens)), "is it?", completion, answer, ended)


ROLLOUTS = [rollout("yes"), rollout(" yes\n", tokens=5), rollout("no, never", tokens=4, ended=False)]


def pattern(regex):
    return PatternReward(weight=1.0, regex=regex).open(refs=None)


def mixture(*parts, scale=1.0, clip=None, length_penalty=0.0, unended_penalty=0.0):
    return Mixture(tuple(parts), scale, clip, length_penalty, unended_penalty)


def test_rewards_are_scaled_clipped_weighed_and_then_penalised():
    parts = [WeightedScorer("exact", 2.0, is_answer), WeightedScorer("pattern", 0.5, pattern(r"\bno\b"))]
    assert mixture(*parts)(ROLLOUTS).tolist() == [2.0, 2.0, 0.5]
    found = mixture(*parts, scale=3.0, clip=2.5, length_penalty=0.1, unended_penalty=1.0)(ROLLOUTS)
    assert found.tolist() == pytest.approx([5.0 - 0.3, 5.0 - 0.5, 1.25 - 0.4 - 1.0])


def test_a_large_reward_leaves_room_for_a_second():
    parts = [
        WeightedScorer("model", 1.0, lambda rollouts: [9.0] * len(rollouts)),
        WeightedScorer("exact", 4.0, is_answer),
    ]
    assert mixture(*parts, clip=5.0)(ROLLOUTS).tolist() == [9.0, 9.0, 5.0]


def test_wins_are_decided_by_the_first_part():
    parts = [WeightedScorer("exact", 2.0, is_answer), WeightedScorer("pattern", 9.0, pattern("no"))]
    assert mixture(*parts, scale=5.0).verdicts(ROLLOUTS).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_a_number_names_its_prompt(bad):
    def source(rollouts):
        return [0.0, bad, 1.0]

    message = rf"the reward of method\.rewards\.model is {bad} for the prompt 'is it\?' and completion ' yes"
    with pytest.raises(ValueError, match=message):
        mixture(WeightedScorer("method.rewards.model", 1.0, source))(ROLLOUTS)


def test_a_broken_pattern_is_refused():
    message = r"method\.rewards\.pattern\.regex='\(' is not a regular expression: .*; see Python's re"
    with pytest.raises(ValueError, match=message):
        pattern("(")


@pytest.fixture
def own_rewards(monkeypatch):
    module = types.ModuleType("own_rewards")
    module.length = lambda prompt, completion, answer: len(completion)
    module.fails = lambda prompt, completion, answer: 1 / (len(completion) - 3)
    module.text = "not a function"
    monkeypatch.setitem(sys.modules, "own_rewards", module)


def test_a_function_is_called_with_prompt_completion_and_answer(own_rewards):
    assert FunctionScorer("own_rewards:length", ["own_rewards"])(ROLLOUTS) == [3.0, 5.0, 9.0]


def test_a_function_that_raises_names_its_prompt(own_rewards):
    with pytest.raises(ValueError, match=r"own_rewards:fails raised ZeroDivisionError.*the prompt 'is it\?'"):
        FunctionScorer("own_rewards:fails", ["own_rewards"])(ROLLOUTS)


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        ("own_rewards:length", [], r"allow_modules=\[\].*add allow_modules=\[own_rewards\]"),
        ("os:system", ["own_rewards"], r"a function of one of allow_modules=\['own_rewards'\]"),
        ("own_rewards", ["own_rewards"], "MODULE:FUNCTION"),
        ("own_rewards:text", ["own_rewards"], "a function that own_rewards has"),
        ("no_such_module:f", ["no_such_module"], "must be on PYTHONPATH here and on every worker"),
    ],
)
def test_other_functions_are_refused(own_rewards, name, allowed, message):
    with pytest.raises(ValueError, match=message):
        load_function(name, allowed)


def test_totals_are_doubles():
    assert mixture(WeightedScorer("exact", 1.0, is_answer))(ROLLOUTS).dtype == np.float64
