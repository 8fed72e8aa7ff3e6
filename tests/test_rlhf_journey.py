"""From preferences to a policy, on Ray: the reward model is a stage of its own and made once; dpo's references are
computed in one task."""

import signal

import pytest
from worlds import write_base, write_records

from raytune_llm.data.records import Preference
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.jobs.setup import start
from raytune_llm.jobs.stages import after_stages
from raytune_llm.stores.registry import Registry

SMALL = [
    "tuning.steps=4",
    "tuning.eval_every=2",
    "tuning.batch_size=4",
    "tuning.adapter_size=4",
    "tuning.warmup_steps=0",
    "name=cats",
    "run=first",
    "evaluation.bootstrap_draws=20",
    "evaluation.max_new_tokens=8",
]


@pytest.fixture
def arguments(tmp_path):
    base = write_base(tmp_path / "base", "llama")
    train, evaluation = write_records(tmp_path, kinds=[Preference])
    files = [f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={tmp_path}"]
    return [*files, *SMALL]


@pytest.mark.slow  # five Ray Train jobs, each with its own start and imports: two minutes
def test_a_policy_from_answers_and_preferences_and_another_from_it(arguments, tmp_path, ray_session, capsys):
    policy = ["method=rlhf", "method.rewards.model.steps=4", "method.max_completion_tokens=6", "method.eval_prompts=4"]
    answers = ["method.sft_data=chosen", "method.sft_steps=4"]
    assert commands.train(load("train", [*arguments, *policy, *answers])) == 0
    registry = Registry(f"{tmp_path}/registry")
    assert [version.reference for version in registry.list()] == ["cats@1", "cats-reward@1", "cats-sft@1"]
    assert registry.resolve("cats@1").card.parent == "cats-sft@1"
    card = registry.resolve("cats@1").card
    assert card.config["method"]["rewards"]["model"]["adapter"] == "cats-reward@1" and card.probes
    assert {"eval/objective", "eval/kl", "eval/win_rate"} <= card.intervals.keys()
    printed = capsys.readouterr().out
    assert "stage 1 of 3: an adapter that learns given answers, cats-sft" in printed
    assert "stage 2 of 3: a reward model from the preferences, cats-reward" in printed
    assert "stage 3 of 3: cats" in printed and "cats-sft@1 (sft), eval/loss " in printed
    started = after_stages(start(load("train", [*arguments, *policy, *answers])))
    assert [version.reference for version in started.earlier] == ["cats-sft@1", "cats-reward@1"]
    assert started.job.method.init_adapter == "cats-sft@1"
    assert commands.train(load("train", [*arguments, *policy, "method.init_adapter=cats@1", "name=dogs"])) == 0
    dogs = registry.resolve("dogs@1").card
    assert dogs.parent == "cats@1" and dogs.config["method"]["rewards"]["model"]["adapter"] == "dogs-reward@1"


def test_references_are_computed_once_and_dpo_sweeps_packed(arguments, tmp_path, ray_session, capsys):
    space = ["sweep.space.method.beta=[0.1,1.0]", "sweep.space.tuning.steps=[2,4]", "sweep/scheduler=none"]
    space += [f"sweep.space.tuning.{key}=null" for key in ("learning_rate_multiplier", "adapter_size")]
    answers_ctrl_c = signal.getsignal(signal.SIGINT)
    commands.run_sweep(load("sweep", [*arguments, "method=dpo", *space]))
    assert signal.getsignal(signal.SIGINT) is answers_ctrl_c, "Ray Tune has kept it"
    printed = capsys.readouterr().out
    assert printed.count("computing the reference policy's log-probabilities") == 1
    assert "packed: " in printed and "not packed" not in printed
    card = Registry(f"{tmp_path}/registry").resolve("cats@1").card
    assert card.kind == "adapter" and "eval/rewards/accuracies" in card.intervals
