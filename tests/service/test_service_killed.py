"""A service that is killed at any write: the next one brings every job to the end that it would have had."""

import itertools
import os

import pytest
from controller_world import Work, World, controller, open_store, request, service

from raytune_llm.service.check_process import Finished
from raytune_llm.service.records import State


class Killed(BaseException):
    """The process is gone."""


class Killing:
    """A storage whose user is killed at a write: before it or after it."""

    def __init__(self, storage, at, *, after):
        self._storage, self._left, self._after = storage, at, after
        self.writes = 0

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        return self._dying(found) if name in ("write", "upload", "remove") else found

    def _dying(self, write):
        def call(*arguments):
            self.writes += 1
            is_last = self.writes == self._left
            if is_last and not self._after:
                raise Killed
            write(*arguments)
            if is_last:
                raise Killed

        return call


def story():
    """Jobs with every kind of end, and what their owners do at which second."""
    world = World()
    requests = [request(owner, created=1_700_000_000 + i) for i, owner in enumerate(("a", "a", "b", "b", "c"))]
    _, failed, bad, cancelled, paused = requests
    world.work[failed.id] = Work(seconds=10, fails="error: too long")
    world.work[cancelled.id], world.work[paused.id] = Work(seconds=1000), Work(seconds=60)
    world.bad_files[bad.id] = Finished(2, "error: one")
    actions = [*((0, "create", one) for one in requests), (45, "cancel", cancelled), (60, "pause", paused)]
    return world, requests, [*actions, (100, "resume", paused)]


def play(folder, deaths):
    """The story on a service that dies at the given writes, each counted from the start of a new service."""
    world, requests, actions = story()
    deaths = iter(deaths)
    writes = []

    def next_service():
        store = open_store(folder)
        at, after = next(deaths, (None, False))
        store._storage = Killing(store._storage, at, after=after)
        writes.append(store._storage)
        return controller(world, store, service(max_jobs=2))

    found = next_service()
    for second in range(0, 400, 5):
        todo = [action for action in actions if action[0] == second]
        while True:
            try:
                while todo:
                    act(found, todo[0])
                    todo.pop(0)
                for _ in range(3):
                    found.step()
                break
            except Killed:
                found = next_service()
        if second > 100 and found.is_idle:
            break
        world.pass_time(5)
    found = controller(world, open_store(folder), service(max_jobs=2))  # one that lives to be asked
    return world, found, requests, sum(storage.writes for storage in writes)


def act(found, action):
    """Do it, unless a killed service has."""
    _, name, asked = action
    job = found.job(asked.id, asked.owner)
    if name == "create":
        return job or found.create(asked)
    done = {"cancel": State.cancelled, "pause": State.paused, "resume": State.queued}[name]
    return job.status.state is done or getattr(found, name)(asked.id, asked.owner)


def ends(found, requests):
    """What matters of each job at its end, without ids and times."""
    found_ends = []
    for asked in requests:
        status = found.job(asked.id, asked.owner).status
        events = found.events(asked.id, asked.owner)
        assert [int(event.id.rpartition("-")[2]) for event in events] == list(range(1, len(events) + 1))
        assert len(set(status.result_files)) == len(status.result_files)
        files = [found._jobs.store.content(found._jobs.store.file(id)) for id in status.result_files]
        texts = [event.message.replace(asked.id, "JOB") for event in events]
        assert len(set(texts)) == len(texts)
        # how far it was when it was cancelled or paused is a matter of seconds
        points = [] if status.state is State.cancelled else sorted(filter(is_point, texts))
        texts = [text for text in texts if not is_point(text)] + points
        found_ends.append(
            (status.state, status.result, status.error, status.attempt, status.is_submitted, files, texts)
        )
    return found_ends


def is_point(text):
    return text.startswith(("Step", "New best"))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("kinds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_service_killed_at_any_write_changes_no_end(tmp_path, kinds):
    """Before it and after it, which differ by what the service did in between; kinds=1: at every second write, by
    turns."""
    world, found, requests, writes = play(tmp_path / "whole", [])
    undisturbed = ends(found, requests)
    assert [one[0].value for one in undisturbed] == ["succeeded", "failed", "failed", "cancelled", "succeeded"]
    assert writes > 50 and len(world.submitted) == len(set(world.submitted)) == 5
    deaths = list(itertools.product(range(1, writes + 1), (False, True)))
    for at, after in (
        deaths if kinds == 2 else [(at, after) for at, after in deaths if at % 2 and after == (at % 4 == 1)]
    ):
        folder = tmp_path / f"{at}-{after}"
        world, found, requests, _ = play(folder, [(at, after)])
        assert ends(found, requests) == undisturbed, (at, after)
        assert len(world.submitted) == len(set(world.submitted)) == 5, (at, after)
        files = found._jobs.store.files()
        assert len(files) == 4 and not list(folder.rglob(".*")), (at, after)


def test_a_service_killed_again_and_again_changes_no_end(tmp_path):
    _, found, requests, _ = play(tmp_path / "whole", [])
    undisturbed = ends(found, requests)
    for every in (2, 3, 5, 7):
        world, found, requests, _ = play(tmp_path / str(every), itertools.repeat((every, True), 200))
        assert ends(found, requests) == undisturbed, every
        assert len(world.submitted) == len(set(world.submitted)) == 5
