"""A sweep's trials as files."""

import pytest

from raytune_llm.sweep.trial_store import Ending, Origin, TrialStore


@pytest.fixture(params=["local", "memory"])
def run_dir(request, tmp_path):
    return str(tmp_path / "run") if request.param == "local" else f"memory://store{tmp_path.name}"


def test_what_is_written_is_read_again(run_dir):
    store = TrialStore.read(run_dir)
    first = store.create({"tuning.adapter_size": 4}, Origin.search)
    clone = store.create({"tuning.adapter_size": 4}, Origin.clone, parent=first.id, command="c")
    store.end(first.id, Ending(why="complete", checkpoint="checkpoint_000008"))
    again = TrialStore.read(run_dir)
    assert again.records == store.records and list(again.records) == ["t0001", "t0002"]
    assert again.endings == {"t0001": Ending(why="complete", checkpoint="checkpoint_000008")}
    assert again.of_command("c") == clone and again.of_command("d") is None
    assert again.next_id == "t0003"


def test_a_folder_without_a_record_is_no_trial_and_its_id_is_given_again(run_dir):
    store = TrialStore.read(run_dir)
    store._storage.write("t0001/checkpoint_000008/history.json", b"{}")
    assert TrialStore.read(run_dir).records == {} and store.create({}, Origin.search).id == "t0001"


def test_a_reopened_trial_has_not_ended(run_dir):
    store = TrialStore.read(run_dir)
    store.create({}, Origin.search)
    store.end("t0001", Ending(why="complete", checkpoint=None))
    store.reopen("t0001")
    assert TrialStore.read(run_dir).endings == store.endings == {}
