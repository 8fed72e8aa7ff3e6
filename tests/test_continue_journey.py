"""Continuous tuning on Ray: a packed sweep that starts in a version of the registry, and what its winner is compared
with."""

import re

import pytest
from worlds import published, trained, write_base, write_records

from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.stores.registry import Registry

SPACE = [
    "sweep.space.tuning.learning_rate_multiplier=[1,3]",
    "sweep.space.tuning.steps=[2,4]",
    "sweep.space.tuning.adapter_size=null",
    "sweep/scheduler=none",
]


@pytest.fixture
def arguments(tmp_path):
    base = write_base(tmp_path / "base", "llama")
    train, evaluation = write_records(tmp_path)
    files = [f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={tmp_path}"]
    small = ["tuning.batch_size=4", "tuning.steps=2", "tuning.eval_every=2", "tuning.warmup_steps=0"]
    return [*files, *small, "evaluation.bootstrap_draws=20", "evaluation.max_new_tokens=8", "name=wit"]


def test_a_packed_sweep_continues_in_a_version(arguments, tmp_path, ray_session, capsys):
    first = load("train", [*arguments, "tuning.adapter_size=2"])
    published(first, trained(first, tmp_path / "first"))
    commands.run_sweep(load("sweep", [*arguments, *SPACE, "method.init_adapter=wit@1", "promote=always"]))
    printed = capsys.readouterr().out
    assert "continuing in wit@1, whose size and settings are inherited: adapter_size=2\n" in printed
    assert "packed: " in printed and "not packed" not in printed
    registry = Registry(f"{tmp_path}/registry")
    card = registry.resolve("wit@2").card
    assert card.parent == "wit@1" and card.config["tuning"]["adapter_size"] == 2
    verdicts = re.findall(r"^(?:comparison)? +.*tuned.* (base|initial|champion) on eval/loss", printed, re.MULTILINE)
    assert verdicts == ["base", "initial"], "the first version is no champion"
