"""Which processes are a head node's own: ids are taken again by others."""

import subprocess
import sys

import pytest

from raytune_llm.service import process_tree
from raytune_llm.service.process_tree import descends_from, is_running

WAITS = (sys.executable, "-c", "import sys; sys.stdin.read()")


@pytest.fixture
def leader():
    """A process with a session of its own, and a text in its command line."""
    process = subprocess.Popen([*WAITS, "marked-once"], stdin=subprocess.PIPE, start_new_session=True)
    yield process
    process.communicate()


def test_a_session_whose_leader_got_an_id_anew_is_left_alone(leader):
    assert descends_from(leader.pid, "marked-once") == [leader.pid]
    assert descends_from(leader.pid, "marked-otherwise") == []


def test_a_process_of_the_kernel_is_not_one_that_has_just_been_started(tmp_path, monkeypatch):
    monkeypatch.setattr(process_tree, "PROC", tmp_path)
    for pid, has_program in ((7, False), (8, True)):
        (tmp_path / f"{pid}").mkdir()
        (tmp_path / f"{pid}" / "cmdline").write_bytes(b"")
        (tmp_path / f"{pid}" / "stat").write_text(f"{pid} (kworker/0:1) S 2 0 0")
        if has_program:
            (tmp_path / f"{pid}" / "exe").symlink_to("/usr/bin/python")
    assert (is_running(7, "any"), is_running(8, "any"), is_running(9, "any")) == (False, True, False)
