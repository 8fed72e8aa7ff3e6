"""Work on many records in several processes: `python -m raytune_llm.data.encoding.workers FD` is one of them.

Each process is a fresh interpreter that has nothing of this one's threads, locks or Ray session, and doesn't run the
main module again, as multiprocessing's would. Batches are given out and come back in their order, so that the result is
that of one process. A process that can't start, or is lost, costs speed only: this one works in its place.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

MANY_RECORDS = 50_000
"""From here on several processes look through records: they take longer to start than fewer records take."""
BLOCK_RECORDS = 2048
"""Records of a batch that are looked through."""
QUEUED_PER_WORKER = 3
"""Batches that wait for a process, or for earlier ones to be done."""
MOST_WORKERS = 32
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
READY = b"ready"


def num_cpus(quota: Path = CPU_QUOTA) -> int:
    """CPUs that this process may use: those of its affinity, at most its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        most, period = quota.read_text().split()
        count = min(count, max(1, round(int(most) / int(period))))
    return count


def map_batches(run: Callable[[A], B], batches: Iterable[A], num_workers: int) -> Iterator[B]:
    """run(batch) of each batch, in their order, by so many processes; by this one where num_workers is 1, or where it
    can't be pickled. Raises what `run` raises. Batches are read ahead of the results, a few for each process."""
    workers = start_workers(run, min(num_workers, MOST_WORKERS)) if num_workers > 1 else []
    if not workers:
        yield from map(run, batches)
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def send(batch: A) -> list[Any]:
        worker = idle.get()
        try:
            return worker.run(batch)
        finally:
            idle.put(worker)

    waiting: deque[tuple[A, Future[list[B]]]] = deque()

    def first() -> B:
        batch, future = waiting.popleft()
        found = future.result()
        return found[0] if found else run(batch)

    with ThreadPoolExecutor(len(workers)) as threads, contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.end)
        for batch in batches:
            waiting.append((batch, threads.submit(send, batch)))
            if len(waiting) >= QUEUED_PER_WORKER * len(workers):
                yield first()
        while waiting:
            yield first()


class Worker:
    """One process, which works on one batch at a time. Its end of the pipe is closed with this object."""

    def __init__(self, job: bytes) -> None:
        """`job`: the pickled callable."""
        self._pipe, remote = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with remote:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(remote.fileno())],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._job = job
        self._is_ready = self._is_lost = self._is_ended = False

    def run(self, batch: Any) -> list[Any]:
        """The batch's result, in a list of its own; an empty list where the process is lost or failed on it."""
        if self._is_lost:
            return []
        try:
            if not self._is_ready:
                self._pipe.send_bytes(self._job)
                self._is_ready = self._pipe.recv_bytes() == READY
            self._pipe.send_bytes(pickle.dumps(batch, protocol=5))
            found: list[Any] = pickle.loads(self._pipe.recv_bytes())
            return found
        except (OSError, EOFError):
            self._is_lost = True
            if not self._is_ended:
                print("! a process that works on the records was lost; the job's own does its part", flush=True)
        return []

    def end(self) -> None:
        """End the process, whatever it does."""
        self._is_ended = True
        self._process.kill()
        self._process.wait()


def start_workers(run: Callable[[A], B], count: int) -> list[Worker]:
    """So many processes; fewer, or none, where they can't be started or be sent `run`."""
    try:
        job = pickle.dumps(run, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):  # a local function, for example
        return []
    workers: list[Worker] = []
    with contextlib.suppress(OSError):
        while len(workers) < count:
            workers.append(Worker(job))
    return workers


def serve(pipe: Connection) -> None:
    """Work on what comes through the pipe until it is closed. A batch that raises is answered with an empty list: the
    process that sent it raises the same when it works on it. Ends where the callable can't be imported."""
    try:
        run = pickle.loads(pipe.recv_bytes())
    except (ImportError, AttributeError):  # of a main module, for example
        return
    pipe.send_bytes(READY)
    while True:
        batch = pickle.loads(pipe.recv_bytes())
        try:
            found = [run(batch)]
        except Exception:  # its traceback would be lost here; the process that sent the batch raises it with one
            found = []
        pipe.send_bytes(pickle.dumps(found, protocol=5))


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal; the job's own ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])))
