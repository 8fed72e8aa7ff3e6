"""A trial's checkpoints on a local folder and on an object store: whole or not there, the newest kept, what hasn't
changed taken over."""

import uuid
from pathlib import Path

import pytest

from raytune_llm.stores.storage import open_storage
from raytune_llm.training import checkpoints


@pytest.fixture(params=["local", "file", "memory"])
def directory(request, tmp_path):
    return {"local": f"{tmp_path}/t", "file": f"file://{tmp_path}/t", "memory": f"memory://{uuid.uuid4().hex}/t"}[
        request.param
    ]


def writer(**files):
    """Writes texts; `__` in a name stands for a folder."""

    def write(folder: Path):
        for name, text in files.items():
            target = folder / name.replace("__", "/")
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        (folder / "history.json").write_text("{}")

    return write


def state(text):
    return lambda folder: (folder / "slot").write_text(text)


def contents(directory):
    storage = open_storage(directory)
    return {name: storage.read(name).decode() for name in storage.files("")}


def test_what_is_kept_is_taken_over_from_the_newest_and_older_ones_go(directory):
    assert checkpoints.latest(directory) is None
    checkpoints.publish(directory, 5, writer(best__w="five", state__slot="s5"), keep=[])
    made = checkpoints.publish(directory, 10, writer(), keep=["best", "state"])
    assert made == checkpoints.latest(directory) == f"{directory}/checkpoint_000010"
    assert contents(directory) == {
        "checkpoint_000010/best/w": "five",
        "checkpoint_000010/history.json": "{}",
        "checkpoint_000010/state/slot": "s5",
    }
    checkpoints.publish(directory, 15, writer(best__w="fifteen"), keep=[])
    assert contents(directory) == {"checkpoint_000015/best/w": "fifteen", "checkpoint_000015/history.json": "{}"}


def test_a_state_is_replaced_in_the_newest_checkpoint(directory):
    checkpoints.publish(directory, 5, writer(best__w="five"), keep=["best", "state"])
    with checkpoints.open_state(checkpoints.latest(directory)) as folder:
        assert folder is None
    for text in ("s5", "s5 again"):
        checkpoints.put_state(directory, state(text))
        with checkpoints.open_state(checkpoints.latest(directory)) as folder:
            assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("slot", text)]
    checkpoints.publish(directory, 10, writer(), keep=["best", "state"])
    checkpoints.put_state(directory, state("s10"))
    assert contents(directory)["checkpoint_000010/state/slot"] == "s10"


def test_the_same_step_again_replaces_its_checkpoint(directory):
    checkpoints.publish(directory, 5, writer(best__w="one"), keep=[])
    checkpoints.publish(directory, 5, writer(state__slot="two"), keep=["best"])
    assert contents(directory) == {
        "checkpoint_000005/best/w": "one",
        "checkpoint_000005/history.json": "{}",
        "checkpoint_000005/state/slot": "two",
    }


def test_unchanged_files_are_not_written_again(tmp_path):
    directory = f"{tmp_path}/t"
    checkpoints.publish(directory, 5, writer(best__w="five"), keep=[])
    before = Path(directory, "checkpoint_000005/best/w").stat().st_ino
    checkpoints.publish(directory, 10, writer(), keep=["best"])
    assert Path(directory, "checkpoint_000010/best/w").stat().st_ino == before


def test_a_replaced_state_leaves_older_links_of_it_alone(tmp_path):
    directory = f"{tmp_path}/t"
    checkpoints.publish(directory, 5, writer(state__slot="s5"), keep=[])
    link = tmp_path / "link"
    link.hardlink_to(Path(directory, "checkpoint_000005/state/slot"))
    checkpoints.put_state(directory, state("new"))
    assert link.read_text() == "s5"


@pytest.mark.parametrize("begun", ["publish", "put_state"])
def test_what_fails_half_way_leaves_the_newest_checkpoint_as_it_was(directory, begun):
    checkpoints.publish(directory, 5, writer(best__w="five", state__slot="s5"), keep=[])
    before = contents(directory)

    def fail(folder):
        (folder / "slot").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        if begun == "publish":
            checkpoints.publish(directory, 10, fail, keep=["best"])
        else:
            checkpoints.put_state(directory, fail)
    assert contents(directory) == before
