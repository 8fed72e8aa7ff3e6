"""A service's controller where its output can't be written, files are missing and logs are cut off."""

import builtins

import pytest
from controller_world import Check, World, controller, open_store, request, run_to_end

from raytune_llm.service.check_process import Finished
from raytune_llm.service.local_state import folder_of
from raytune_llm.service.records import State
from raytune_llm.service.runner import RayRunner


@pytest.fixture
def world():
    return World()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "home")


def test_jobs_move_on_while_nothing_can_be_printed(world, store, monkeypatch):
    def full(*args, **fields):
        raise OSError(28, "No space left on device")

    found = controller(world, store)
    job = found.create(request())
    world.unreachable = True
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "print", full)
        for _ in range(3):
            found.step()
    world.unreachable = False
    run_to_end(world, found)
    assert found.job(job.request.id, "local").status.state is State.succeeded


def test_a_check_without_a_report_fails_its_job_alone(world, store):
    found = controller(world, store, check=lambda command: Check(Finished(0, "")))
    jobs = [found.create(request()) for _ in range(2)]
    for _ in range(4):
        found.step()
    for job in jobs:
        status = found.job(job.request.id, "local").status
        assert (status.state, status.error.code) == (State.failed, "server_error")


def test_a_log_that_is_cut_off_is_none(monkeypatch):
    runner = RayRunner("http://127.0.0.1:1")
    monkeypatch.setattr(runner, "_ask", lambda *order: (200, '{"logs": "step 1'))
    assert runner.log("ftjob-1") == ""


def test_a_home_is_one_by_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert folder_of(str(tmp_path / "link")) == folder_of(str(tmp_path / "home"))
    assert folder_of("memory://a/home") != folder_of("memory://b/home")


def test_jobs_of_one_second_keep_their_order(world, store):
    found = controller(world, store)
    made = []
    for _ in range(6):
        made.append(found.create(request()).request.id)
        world.clock.now += 0.01
    for service in (found, controller(world, store)):
        assert [job.request.id for job in service.jobs("local")] == made[::-1]
    run_to_end(world, found)
    assert [id.rpartition("-")[0] for id in world.submitted] == made
