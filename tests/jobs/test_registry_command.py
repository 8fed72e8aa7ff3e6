import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from raytune_llm.errors import InputError
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.stores.card import Card
from raytune_llm.stores.registry import Registry

CARD = Card(
    kind="adapter",
    base="base",
    base_revision="0" * 64,
    base_loading={},
    method="sft",
    metrics={"eval/loss": 0.5},
    intervals={},
    config={},
    data={},
    seed=0,
    step=10,
    probes=[],
    code_version="0",
)


def run(home, *overrides):
    return commands.registry(load("registry", [f"home={home}", *overrides]))


def test_list_show_alias_and_rollback(tmp_path, capsys):
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    save_file({"w": torch.zeros(2)}, source / "adapter_model.safetensors")
    registry = Registry(str(tmp_path / "registry"))
    for step in (10, 20):
        registry.publish("wit", source, dataclasses.replace(CARD, step=step))
    for version in ("wit@1", "wit@2"):
        run(tmp_path, "action=alias", f"version={version}")
    assert registry.resolve("wit@champion").number == 2
    run(tmp_path, "action=rollback", "version=wit")
    assert registry.resolve("wit@champion").number == 1
    run(tmp_path, "action=alias", "version=wit@2", "alias=candidate")
    capsys.readouterr()
    run(tmp_path)
    printed = capsys.readouterr().out
    assert "wit" in printed and "champion" in printed and "candidate" in printed
    run(tmp_path, "action=show", "version=wit@candidate")
    assert "20" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["show", "alias", "rollback"])
def test_a_version_must_be_named(action, tmp_path):
    with pytest.raises(InputError, match="version=None is not allowed; allowed: NAME for rollback, NAME@3 for show"):
        run(tmp_path, f"action={action}")
