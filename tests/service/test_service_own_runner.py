"""The service's own head node dies while the service runs."""

from dataclasses import dataclass

import pytest

from raytune_llm.errors import InputError
from raytune_llm.service import own_runner
from raytune_llm.service.own_runner import OwnRunner


@dataclass
class Head:
    """A head node, and what it is asked."""

    name: str
    is_running: bool = True
    is_reached: bool = True

    @property
    def runner(self):
        return self

    def seen(self, submission_id):
        if not (self.is_running and self.is_reached):
            raise ConnectionError(f"{self.name} can't be reached")
        return (self.name, submission_id)


@pytest.fixture
def heads(monkeypatch):
    monkeypatch.setattr(own_runner, "AGAIN_SECONDS", 0.0)
    return []


def started(heads):
    heads.append(Head(f"head {len(heads)}"))
    return heads[-1]


def test_a_head_that_died_is_started_anew_once(heads):
    first = started(heads)
    runner, new = OwnRunner(first, lambda: started(heads)), []
    runner.on_start = new.append
    first.is_reached = False  # it is only busy
    for _ in range(2):
        with pytest.raises(ConnectionError, match="head 0"):
            runner.seen("job-1")
    assert new == []
    first.is_running = False
    with pytest.raises(ConnectionError, match="head 0"):
        runner.seen("job-1")
    assert runner.seen("job-1") == ("head 1", "job-1") and new == heads[1:] and len(heads) == 2


def test_a_head_that_does_not_start_is_tried_again_later(heads, monkeypatch):
    def fails():
        heads.append(None)
        raise InputError("no ports are left")

    runner = OwnRunner(Head("head", is_running=False), fails)
    with pytest.raises(ConnectionError, match="no ports"):
        runner.seen("job-1")
    monkeypatch.setattr(own_runner, "AGAIN_SECONDS", 60.0)
    with pytest.raises(ConnectionError, match="can't be reached"):
        runner.seen("job-1")
    assert len(heads) == 1
