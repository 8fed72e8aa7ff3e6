"""The command of a report is the one that was given."""

import pytest

from raytune_llm.jobs import invocation


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch):
    monkeypatch.setattr(invocation, "_noted", None)


def test_a_command_can_be_pasted_into_a_shell():
    assert invocation.command_line() is None
    invocation.note("sweep", ["model=demo", "sweep.space.tuning.steps=[20,40]", "data.train=my file.jsonl"])
    found = invocation.command_line()
    assert found.endswith("sweep model=demo 'sweep.space.tuning.steps=[20,40]' 'data.train=my file.jsonl'") or (
        found.endswith("sweep.py model=demo 'sweep.space.tuning.steps=[20,40]' 'data.train=my file.jsonl'")
    )


def test_a_key_that_is_set_is_set_once():
    invocation.note("train", ["run=old", "+x=1"])
    assert invocation.command_line(run="new").endswith(" +x=1 run=new")


def test_secrets_are_left_out():
    invocation.note("train", ["model.from_pretrained.token=hf_x", "scaling.trainer.hub_token=y", "data.max_tokens=5"])
    found = invocation.command_line()
    assert "hf_x" not in found and "=y" not in found and "data.max_tokens=5" in found
