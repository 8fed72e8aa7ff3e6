"""metrics.jsonl holds each step once, whatever was killed and resumed."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from raytune_llm.errors import InputError
from raytune_llm.stores.storage import open_storage
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.base import CompositeRun, RunInfo, start_all
from raytune_llm.training.tracking.jsonl import JSONL, RemoteLines, read_lines

OBJECTIVE = Objective("eval/loss", lower_is_better=True)


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://test-{uuid.uuid4().hex}/run"


def info(directory: str, from_step: int = 0) -> RunInfo:
    return RunInfo(
        name="trial-1", group="sweep", config={}, directory=directory, from_step=from_step, home="", objective=OBJECTIVE
    )


def lines(directory: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in open_storage(directory).read("metrics.jsonl").splitlines()]


def test_lines_and_summary(directory: str) -> None:
    run = JSONL().start(info(directory))
    run.log(1, {"train/loss": 2.5})
    run.log(1, {"eval/loss": 2})
    run.log(2, {"train/loss": float("nan"), "eval/perplexity": float("inf")})
    run.finish({"eval/loss": 2.0, "ended": "stopped"}, failed=True)
    written = lines(directory)
    assert all(1.7e9 < line.pop("time") < 1e11 for line in written)
    assert written == [
        {"step": 1, "train/loss": 2.5},
        {"step": 1, "eval/loss": 2.0},
        {"step": 2, "train/loss": "NaN", "eval/perplexity": "Infinity"},
    ]
    summary = json.loads(open_storage(directory).read("summary.json"))
    assert summary == {"failed": True, "ended": "stopped", "metrics": {"eval/loss": 2.0}}
    read = read_lines(directory, up_to=1)
    assert [(line.step, dict(line.metrics)) for line in read] == [(1, {"train/loss": 2.5}), (1, {"eval/loss": 2.0})]
    assert read_lines(directory)[-1].metrics["eval/perplexity"] == float("inf")


def test_a_resumed_run_holds_no_step_twice(directory: str) -> None:
    run = JSONL().start(info(directory))
    for step in (0, 10, 20, 30):
        run.log(step, {"train/loss": 1.0 + step})
    run.finish({}, failed=True)
    run = JSONL().start(info(directory, from_step=20))
    for step in (30, 40):
        run.log(step, {"train/loss": 2.0 + step})
    run.finish({}, failed=False)
    assert [(line["step"], line["train/loss"]) for line in lines(directory)] == [
        (0, 1),
        (10, 11),
        (20, 21),
        (30, 32),
        (40, 42),
    ]


def test_a_run_from_the_beginning_starts_empty(directory: str) -> None:
    for _ in range(2):
        run = JSONL().start(info(directory))
        run.log(0, {"eval/loss": 1.0})
        run.finish({}, failed=False)
    assert len(lines(directory)) == 1


def test_a_torn_last_line_is_dropped_and_a_torn_other_line_is_named(directory: str) -> None:
    storage = open_storage(directory)
    storage.write("metrics.jsonl", b'{"step": 1}\n{"step": 2}\n{"step": 3, "tra')
    JSONL().start(info(directory, from_step=3)).finish({}, failed=False)
    assert [line["step"] for line in lines(directory)] == [1, 2]
    storage.write("metrics.jsonl", b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2 is not a line of metrics"):
        JSONL().start(info(directory, from_step=3))


def test_local_lines_are_there_at_once(tmp_path: Path) -> None:
    run = JSONL().start(info(str(tmp_path)))
    run.log(1, {"train/loss": 2.5})
    assert lines(str(tmp_path))[0]["train/loss"] == 2.5
    run.finish({}, failed=False)


def test_remote_lines_are_put_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = f"memory://test-{uuid.uuid4().hex}"
    run = JSONL().start(info(directory))
    assert isinstance(run, RemoteLines)
    run.log(1, {"train/loss": 2.5})
    assert lines(directory) == []
    monkeypatch.setattr("raytune_llm.training.tracking.jsonl.PUT_SECONDS", 0.0)
    run.log(2, {"train/loss": 2.5})
    assert [line["step"] for line in lines(directory)] == [1, 2]


@pytest.mark.parametrize("name", ["step", "time"])
def test_a_metric_cannot_take_a_key_of_the_line(tmp_path: Path, name: str) -> None:
    run = JSONL().start(info(str(tmp_path)))
    with pytest.raises(ValueError, match=rf"metrics can't be named \['{name}'\]"):
        run.log(1, {name: 1.0})


class Recorder:
    """A tracker that records its calls and raises in one of them."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks
        self.calls: list[Any] = []

    def start(self, info: RunInfo) -> "Recorder":
        return self._tell("start", info.name)

    def log(self, step: int, metrics: Any) -> None:
        self._tell("log", step, metrics)

    def finish(self, summary: Any, failed: bool) -> None:
        self._tell("finish", summary, failed)

    def _tell(self, what: str, *values: Any) -> "Recorder":
        self.calls.append((what, *values))
        if self.breaks == what:
            raise RuntimeError(f"{what} broke")
        return self


def test_several_trackers_are_one_run(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    run = start_all([JSONL(), one, two], info(str(tmp_path)))
    run.log(3, {"train/loss": 1.0})
    run.finish({"eval/loss": 2.0}, failed=False)
    calls = [("start", "trial-1"), ("log", 3, {"train/loss": 1.0}), ("finish", {"eval/loss": 2.0}, False)]
    assert one.calls == two.calls == calls
    assert lines(str(tmp_path))[0]["step"] == 3


def test_no_trackers_are_a_run_that_logs_nowhere(tmp_path: Path) -> None:
    run = start_all([], info(str(tmp_path)))
    assert run == CompositeRun(())
    run.log(1, {"train/loss": 1.0})
    run.finish({}, failed=False)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_start_ends_those_before_it() -> None:
    one = Recorder()
    with pytest.raises(RuntimeError, match="start broke"):
        start_all([one, Recorder(breaks="start")], info("nowhere"))
    assert one.calls[-1] == ("finish", {}, True)


def test_every_run_is_finished_also_when_one_breaks() -> None:
    one, two, three = Recorder(), Recorder(breaks="finish"), Recorder()
    run = start_all([one, two, three], info("nowhere"))
    with pytest.raises(RuntimeError, match="finish broke"):
        run.finish({}, failed=False)
    assert [tracker.calls[-1][0] for tracker in (one, two, three)] == ["finish"] * 3
