"""A thread keeps logs: nobody waits for it, nothing is lost, errors surface."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from raytune_llm.training.tracking.background import WORKER, BackgroundRun, flush


class Log:
    """A run that keeps its calls; `live` says whether it shows summaries."""

    def __init__(self, breaks: str = "") -> None:
        self.calls: list[Any] = []
        self.breaks = breaks

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.note("log", step)

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        self.note("finish", failed)

    def note(self, what: str, value: Any) -> None:
        self.calls.append((what, value))
        if self.breaks == what:
            raise RuntimeError(f"{what} broke")


class LiveLog(Log):
    def summarize(self, summary: Mapping[str, Any]) -> None:
        self.note("summarize", dict(summary))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not WORKER.errors


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_calls_return_at_once_and_are_carried_out_in_order() -> None:
    gate, one, two = threading.Event(), LiveLog(), Log()

    def start() -> Log:
        gate.wait()
        return one

    first, second = BackgroundRun(start), BackgroundRun(lambda: two)
    for run in (first, second):
        run.log(1, {})
        run.summarize({"a": 1.0})
        run.finish({}, failed=False)
    assert not one.calls and not two.calls
    gate.set()
    flush()
    assert one.calls == [("log", 1), ("summarize", {"a": 1.0}), ("finish", False)]
    assert two.calls == [("log", 1), ("finish", False)]


def test_an_error_is_raised_by_the_runs_next_call_alone() -> None:
    broken, sound = Log(breaks="log"), Log()
    runs = [BackgroundRun(lambda: broken), BackgroundRun(lambda: sound)]
    for run in runs:
        run.log(1, {})
    until(lambda: runs[0].error is not None)
    runs[1].log(2, {})
    with pytest.raises(RuntimeError, match="log broke"):
        runs[0].log(2, {})
    with pytest.raises(RuntimeError, match="log broke"):
        runs[0].finish({}, failed=False)
    flush()
    assert broken.calls == [("log", 1)] and sound.calls == [("log", 1), ("log", 2)]


def test_an_error_that_no_call_has_raised_is_raised_at_the_end() -> None:
    BackgroundRun(lambda: Log(breaks="finish")).finish({}, failed=False)
    with pytest.raises(RuntimeError, match="finish broke"):
        flush()
    flush()
