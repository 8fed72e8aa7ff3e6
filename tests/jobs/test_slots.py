"""The quota of tuning jobs on a real cluster: a driver that finds no free slot waits until another one's is given back,
or lost with it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raytune_llm.jobs import slots
from raytune_llm.sweep.status import State, read_status, reporting

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from raytune_llm import cluster
from raytune_llm.compat import loopback_node
from raytune_llm.jobs import slots
with loopback_node():
    cluster.connect()
slots.acquire("wit/first")
slots.acquire("wit/first-stage")
print("held", flush=True)
sys.stdin.readline()
slots.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def cluster_of_one_slot():
    """A session that other drivers can join; its address."""
    import ray

    from raytune_llm import cluster, session

    cluster.set_environment()
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp", ignore_cleanup_errors=True) as folder:
        session.begin(dashboard=False, num_cpus=1, resources={slots.RESOURCE: 1}, _temp_dir=folder)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def holder(cluster_of_one_slot):
    """Another driver that holds the slot."""
    environment = {**os.environ, "RAY_ADDRESS": cluster_of_one_slot}
    command = [sys.executable, "-c", HOLDER]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    while (line := process.stdout.readline()) != "held\n":
        assert line, "the other driver has ended"
    yield process
    process.kill()
    process.wait()


def ends(holder):
    holder.stdin.close()


def gives_it_back(holder):
    print(file=holder.stdin, flush=True)


def is_killed(holder):
    holder.kill()


@pytest.mark.parametrize("happens", [gives_it_back, ends, is_killed])
def test_a_second_driver_waits_for_the_slot_of_the_first(holder, tmp_path, happens):
    lines, states = [], []

    def say(line):
        lines.append(line)
        happens(holder)

    with reporting(str(tmp_path), command="sweep", name="wit", run="second"):
        slots.acquire("wit/second", lambda line: (states.append(slots.status._current.status), say(line)))
        slots.acquire("wit/second-stage")
        slots.release()
    assert lines[0].startswith("waiting for a tuning slot: 1 of 1 in use (") and lines[0].endswith(": wit/first)")
    assert states[0].state is State.waiting and states[0].note == lines[0]
    assert read_status(str(tmp_path)).state is State.ended


def test_a_cluster_without_slots_has_no_quota(cluster_of_one_slot, monkeypatch):
    monkeypatch.setattr(slots, "RESOURCE", "no_such_resource")
    slots.acquire("wit/r", lambda line: pytest.fail(line))
    assert slots._held is None
