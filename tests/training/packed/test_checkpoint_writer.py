"""The thread that writes checkpoints: its order, what it holds, what a slow or failing disk does."""

import threading
from dataclasses import dataclass, field

import pytest

from raytune_llm.training.packed.checkpoint_writer import CheckpointWriter
from raytune_llm.training.packed.pending_report import StateTimer


@dataclass
class Disk:
    """What has been written, in order; each write waits for `free`."""

    free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lines: list[str] = field(default_factory=list)
    full_at: str | None = None

    def write(self, line):
        self.begun.release()
        assert self.free.acquire(timeout=10)
        if line == self.full_at:
            raise OSError(28, "No space left on device")
        self.lines.append(line)


@dataclass
class Numbered:
    """As a PendingReport."""

    trial_id: str
    number: int
    disk: Disk
    timer: StateTimer | None = None

    def publish(self):
        self.disk.write(f"report {self.trial_id}{self.number}")

    def put_state(self):
        self.disk.write(f"state {self.trial_id}{self.number}")


class Written:
    def __init__(self):
        self.disk, self.published, self.errors = Disk(), [], []
        self.died = threading.Event()
        self.writer = CheckpointWriter(self.on_published, self.on_failure)

    def on_published(self, pending):
        assert self.disk.lines[-1] == f"report {pending.trial_id}{pending.number}", "it is published before it is whole"
        self.published.append(f"{pending.trial_id}{pending.number}")

    def on_failure(self, error):
        self.errors.append(error)
        self.died.set()

    def submit(self, trial_id, number, *, state=False):
        self.writer.submit(Numbered(trial_id, number, self.disk, StateTimer() if state else None))

    def hold(self):
        """Wait until a write has begun; it ends when the disk is free."""
        assert self.disk.begun.acquire(timeout=10)

    def finish(self):
        self.disk.free.release(100)
        self.writer.close()
        return self.disk.lines


@pytest.fixture
def written():
    return Written()


def test_reports_go_in_order_and_before_states(written):
    for number, trial_id in enumerate("abc"):
        written.submit(trial_id, number, state=True)
    lines = written.finish()
    assert lines == ["report a0", "report b1", "report c2", "state a0", "state b1", "state c2"]
    assert written.published == ["a0", "b1", "c2"] and not written.errors


def test_a_submission_does_not_wait_for_a_slow_disk_and_is_not_published_early(written):
    written.submit("a", 1, state=True)
    written.submit("b", 1)
    written.hold()
    assert written.published == [] and written.disk.lines == []
    written.finish()


def test_at_most_one_report_and_one_state_of_a_trial_wait(written):
    """The newest state takes the place of one that hasn't been written."""
    written.submit("a", 1, state=True)
    written.submit("b", 1)
    written.hold()
    written.disk.free.release(2)  # both reports
    written.hold()
    written.hold()  # a's state is being written
    for number in (2, 3, 4):
        written.submit("a", number, state=True)
        written.disk.free.release(2)  # what is being written, and this report
        written.hold()
        written.hold()
        assert len(written.writer._reports) + len(written.writer._states) <= 1
    lines = written.finish()
    assert [line for line in lines if line.startswith("report a")] == [f"report a{number}" for number in (1, 2, 3, 4)]
    assert lines[-1] == "state a4"


def test_an_unwritten_state_gives_way_to_a_newer_one(written):
    written.submit("a", 1, state=True)
    written.submit("b", 1)
    written.hold()
    written.disk.free.release(1)
    written.hold()  # b's report is being written, a's state waits
    written.submit("a", 2, state=True)
    assert written.writer._states == {}
    assert written.finish() == ["report a1", "report b1", "report a2", "state a2"]


def test_a_trial_reports_once_at_a_time(written):
    written.submit("b", 1)
    written.submit("a", 1)
    with pytest.raises(AssertionError, match="before its last report is published"):
        written.submit("a", 2)
    written.finish()


def test_a_flush_returns_when_all_of_the_trial_is_written_and_lets_it_go_first(written):
    for trial_id in "abcd":
        written.submit(trial_id, 1, state=True)
    written.hold()
    flushed = threading.Event()
    thread = threading.Thread(target=lambda: (written.writer.flush("d"), flushed.set()))
    thread.start()
    while next(iter(written.writer._reports)) != "d":
        pass
    assert not flushed.wait(0.05)
    lines = written.finish()
    thread.join(10)
    assert flushed.is_set() and lines[:2] == ["report a1", "report d1"] and "state d1" in lines
    written.writer.flush("nobody")


def test_a_full_disk_ends_it_with_its_error_and_nobody_waits_for_it(written):
    written.disk.full_at = "report b1"
    for trial_id in "abc":
        written.submit(trial_id, 1, state=True)
    written.disk.free.release(100)
    assert written.died.wait(10)
    assert written.published == ["a1"] and written.disk.lines == ["report a1"]
    assert [str(error) for error in written.errors] == ["[Errno 28] No space left on device"]
    written.submit("d", 1)
    written.writer.flush("d")
    written.writer.close()
    assert written.disk.lines == ["report a1"]


def test_a_failing_receiver_is_an_error_too():
    """Nothing that the writer's thread raises is swallowed."""
    disk, errors = Disk(), []
    disk.free.release(100)

    def refuse(pending):
        raise ValueError("a bug")

    writer = CheckpointWriter(refuse, errors.append)
    writer.submit(Numbered("a", 1, disk))
    writer.close()
    assert [str(error) for error in errors] == ["a bug"]
