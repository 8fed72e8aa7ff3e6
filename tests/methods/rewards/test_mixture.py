"""The mixture in closed form; each source by itself; a bad reward names its prompt."""

import math
import sys
import types

import numpy as np
import pytest

from raytune_llm.data.examples import Rollout
from raytune_llm.methods.rewards.function import Function, load_function
from raytune_llm.methods.rewards.mixture import Mixture, Weighed
from raytune_llm.methods.rewards.text import ExactAnswer, Pattern


def rollout(completion, answer="yes", tokens=3, ended=True):
    return Rollout([5, 6], list(range(tokens)), "is it?", completion, answer, ended)


ROLLOUTS = [rollout("yes"), rollout(" yes\n", tokens=5), rollout("no, never", tokens=4, ended=False)]


def mixture(*parts, scale=1.0, clip=None, length_penalty=0.0, unended_penalty=0.0):
    return Mixture(tuple(parts), scale, clip, length_penalty, unended_penalty)


def test_rewards_are_weighed_scaled_clipped_and_then_penalised():
    parts = [Weighed("exact", 2.0, ExactAnswer()), Weighed("pattern", 0.5, Pattern(r"\bno\b"))]
    assert mixture(*parts)(ROLLOUTS).tolist() == [2.0, 2.0, 0.5]
    found = mixture(*parts, scale=3.0, clip=4.0, length_penalty=0.1, unended_penalty=1.0)(ROLLOUTS)
    assert found.tolist() == pytest.approx([4.0 - 0.3, 4.0 - 0.5, 1.5 - 0.4 - 1.0])


def test_wins_are_counted_by_the_first_source():
    parts = [Weighed("exact", 2.0, ExactAnswer()), Weighed("pattern", 9.0, Pattern("no"))]
    assert mixture(*parts, scale=5.0).verdicts(ROLLOUTS).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_a_number_names_its_prompt(bad):
    def source(rollouts):
        return [0.0, bad, 1.0]

    message = rf"the model reward .method.model_weight. is {bad} for the prompt 'is it\?' and completion ' yes"
    with pytest.raises(ValueError, match=message):
        mixture(Weighed("model", 1.0, source))(ROLLOUTS)


def test_a_broken_pattern_is_refused():
    with pytest.raises(ValueError, match=r"method\.pattern='\(' is not a regular expression: .*; see Python's re"):
        Pattern("(")


@pytest.fixture
def own_rewards(monkeypatch):
    module = types.ModuleType("own_rewards")
    module.length = lambda prompt, completion, answer: len(completion)
    module.fails = lambda prompt, completion, answer: 1 / (len(completion) - 3)
    module.text = "not a function"
    monkeypatch.setitem(sys.modules, "own_rewards", module)


def test_a_function_is_called_with_prompt_completion_and_answer(own_rewards):
    assert Function("own_rewards:length", ["own_rewards"])(ROLLOUTS) == [3.0, 5.0, 9.0]


def test_a_function_that_raises_names_its_prompt(own_rewards):
    with pytest.raises(ValueError, match=r"own_rewards:fails raised ZeroDivisionError.*the prompt 'is it\?'"):
        Function("own_rewards:fails", ["own_rewards"])(ROLLOUTS)


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
    assert mixture(Weighed("exact", 1.0, ExactAnswer()))(ROLLOUTS).dtype == np.float64
