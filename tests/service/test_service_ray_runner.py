"""The service's own head node of Ray: started, found again, asked, ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from controller_world import REPORT, Planner, World, request, service

from raytune_llm.errors import InputError
from raytune_llm.service import head
from raytune_llm.service.check_process import Finished
from raytune_llm.service.controller import Controller
from raytune_llm.service.local_state import folder_of, only_service
from raytune_llm.service.own_runner import OwnRunner
from raytune_llm.service.planning import Planned
from raytune_llm.service.process_tree import descends_from
from raytune_llm.service.ray_cluster import open_cluster
from raytune_llm.service.records import Estimate, State
from raytune_llm.service.runner import RayRunner, RunState
from raytune_llm.service.store import Store
from raytune_llm.stores.json import to_json

WAIT_SECONDS = 120
SERVICE = """
import sys, time
from raytune_llm.service import head
from raytune_llm.service.local_state import only_service
with only_service(sys.argv[1]):
    found = head.find_or_start(sys.argv[1], hidden=("SECRET_KEYS",), options=("--num-cpus=2",))
    found.runner.submit("long-1", ["python", "-c", sys.argv[2]], {})
    print(found.pid, flush=True)
    time.sleep(1000)
"""
LONG = "import os, time; print(sorted(n for n in os.environ if n.startswith('SECRET')), flush=True); time.sleep(1000)"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A home whose service was killed while a job ran; its head node."""
    home = str(tmp_path_factory.mktemp("service"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SECRET_KEYS", "k")
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 3}')
        process = subprocess.Popen([sys.executable, "-c", SERVICE, home, LONG], stdout=subprocess.PIPE, text=True)
        try:
            pid = int(process.stdout.readline())
            with pytest.raises(InputError, match=f"has a service already: process {process.pid} "), only_service(home):
                pass
            process.kill()
            process.wait()
            with only_service(home):
                assert head.running(home).pid == pid
                yield home, head.find_or_start(home)
        finally:
            process.kill()
            left = head.running(home)
            head.stop(home)
            assert left is None or not (descends_from(left.pid, left.scratch) or os.path.exists(left.scratch))


@pytest.fixture(autouse=True)
def same_cache(world, monkeypatch):
    """conftest gives each test a cache of its own."""
    _, found = world
    monkeypatch.setenv("XDG_CACHE_HOME", str(found.token_path).partition("/raytune_llm/")[0])


def wait_for(runner, id, done):
    deadline = time.monotonic() + WAIT_SECONDS
    while not done(seen := runner.seen(id)):
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    return seen


def test_a_killed_service_leaves_its_jobs_running_and_the_next_ends_them(world):
    runner = world[1].runner
    assert wait_for(runner, "long-1", lambda seen: seen.state is RunState.running).ended is None
    while "[]" not in runner.log("long-1"):
        time.sleep(0.2)
    assert "['SECRET" not in runner.log("long-1")
    runner.stop("long-1")
    assert wait_for(runner, "long-1", lambda seen: seen.state.is_final).state is RunState.stopped


def test_an_id_is_submitted_once(world, tmp_path):
    runner = world[1].runner
    append = "import sys; open(sys.argv[1], 'a').write('ran\\n'); print('it ran')"
    for _ in range(2):
        runner.submit("once-1", ["python", "-c", append, str(tmp_path / "a file")], {"job": "once"})
    seen = wait_for(runner, "once-1", lambda seen: seen.state.is_final)
    assert seen.state is RunState.succeeded and abs(seen.ended - time.time()) < WAIT_SECONDS
    runner.submit("once-1", ["false"], {})
    assert (tmp_path / "a file").read_text() == "ran\n" and "it ran" in runner.log("once-1")


def test_what_the_cluster_does_not_know(world):
    runner = world[1].runner
    assert runner.seen("never-1") is None and runner.log("never-1") == ""
    runner.stop("never-1")


def test_devices_of_the_cluster(world):
    assert world[1].runner.devices() == 3 and world[1].runner.has_gpu()


def test_a_command_the_cluster_will_never_take(world):
    with pytest.raises(RuntimeError, match="doesn't take never-2: status 400"):
        world[1].runner.submit("never-2", ["true"], {"job": 3})


def test_who_has_no_token_is_refused_and_nobody_else_is_reached(world):
    found = world[1]
    assert os.stat(found.token_path).st_mode & 0o77 == 0 == os.stat(folder_of(world[0])).st_mode & 0o77
    for token in (None, "a" * 64):
        with pytest.raises(ConnectionError, match="refuses the service's token"):
            RayRunner(found.address, token).seen("once-1")
    with pytest.raises(ConnectionError, match="can't be reached"):
        RayRunner("http://127.0.0.1:9", "x", timeout=5).seen("once-1")
    for pid in descends_from(found.pid, found.scratch):
        for connection in psutil.Process(pid).net_connections() if psutil.pid_exists(pid) else ():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", psutil.Process(pid).cmdline()


def test_the_next_service_uses_its_own_head(world):
    runner, own = open_cluster(service(), world[0])
    assert own == world[1] and runner.seen("never-1") is None


def test_an_address_that_nothing_answers_is_refused(world):
    with pytest.raises(InputError, match=r"service\.ray_address: .* can't be reached"):
        open_cluster(service(ray_address="http://127.0.0.1:9"), world[0])
    assert world[1].is_running


class OneSecond(Planner):
    """Commands that take a second."""

    def plan(self, request, facts, *, has_gpu):
        command = ("python", "-c", "import time; time.sleep(1); print('error: that is all'); raise SystemExit(2)")
        estimate = Estimate(records=1, epochs=1, tokens=1, trials=1, device_hours=0.1)
        return Planned(command=command, estimate=estimate)


@pytest.mark.slow
def test_twenty_jobs_of_three_keys_on_a_cluster(world, tmp_path):
    """Two at once, each once, and no key waits for another's whole queue."""
    runner, most = world[1].runner, 0
    store = Store(str(tmp_path))
    found = Controller(
        store,
        service(max_jobs=2),
        runner,
        planner=OneSecond(store),
        start_check=lambda command: Checked(store, command),
        open_run=World().open_run,
    )
    owners = {}
    for i in range(20):
        asked = request("aaaaaaaaaaaaabbbbccc"[i], created=1_700_000_000 + i)
        owners[asked.id] = asked.owner
        found.create(asked)
    deadline = time.monotonic() + 5 * WAIT_SECONDS
    jobs = []
    while not jobs or not all(job.status.state.is_final for job in jobs):
        assert time.monotonic() < deadline
        found.step()
        jobs = [found.job(id, owner) for id, owner in owners.items()]
        states = [runner.seen(f"{id}-1") for id in owners]
        most = max(most, sum(seen is not None and not seen.state.is_final for seen in states))
    assert most == 2
    assert {(job.status.state, job.status.attempt, job.status.error.message) for job in jobs} == {
        (State.failed, 1, "that is all")
    }
    starts = [owners[job.request.id] for job in sorted(jobs, key=lambda job: job.status.since(State.running))]
    assert "b" in starts[:8] and "c" in starts[:9], starts
    assert all(job.status.device_seconds > 0 for job in jobs)


class Checked:
    """A check that finds nothing wrong."""

    def __init__(self, store, command):
        store._storage.write(f"service/jobs/{command[-1]}/check/report.json", to_json(REPORT).encode())

    def poll(self):
        return Finished(0, "")

    def kill(self):
        pass


@pytest.mark.slow
def test_a_dead_head_is_replaced_and_an_ended_one_leaves_nothing(world):
    """The last test of this file: it ends the head."""
    home, found = world
    for pid in descends_from(found.pid, found.scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(found.pid)] if psutil.pid_exists(found.pid) else [], timeout=30)
    assert head.running(home) is None
    runner = OwnRunner(found, lambda: head.find_or_start(home, options=("--num-cpus=1",)))
    with pytest.raises(ConnectionError):
        runner.seen("once-1")
    assert runner.seen("once-1") is None
    new = head.running(home)
    assert new.pid != found.pid and not os.path.exists(found.scratch) and new.runner.seen("once-1") is None
    head.stop(home)
    assert head.running(home) is None and not descends_from(new.pid, new.scratch) and not os.path.exists(new.scratch)
    head.stop(home)
