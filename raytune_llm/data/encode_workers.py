"""Encoding in several processes: `python -m raytune_llm.data.encode_workers FD` is one of them.

Each process is a fresh interpreter that has nothing of this one's threads, locks or Ray session, and doesn't run the
main module again, as multiprocessing's would. Batches are given out and come back in their order, so that the result is
that of one process. A process that can't start, or is lost, costs speed only: this one encodes in its place.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from raytune_llm.data.encode_block import Block, Encode, encode_block
from raytune_llm.data.records import Record
from raytune_llm.data.tokens import Tokens

QUEUED_PER_WORKER = 3
"""Batches that wait for a worker, or for earlier ones to be done."""
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


def encode_batches(
    batches: Iterable[Sequence[Record]], tokens: Tokens, encode: Encode, num_workers: int
) -> Iterator[Block]:
    """A block for each batch, in their order, by so many processes; by this one where num_workers is 1, or where
    `encode` or `tokens` can't be sent to another."""
    workers = start_workers(tokens, encode, min(num_workers, MOST_WORKERS)) if num_workers > 1 else []
    if not workers:
        yield from (encode_block(batch, tokens, encode) for batch in batches)
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(batch: Sequence[Record]) -> Block | None:
        worker = idle.get()
        try:
            return worker.encode(batch)
        finally:
            idle.put(worker)

    waiting: deque[tuple[Sequence[Record], Future[Block | None]]] = deque()
    with ThreadPoolExecutor(len(workers)) as threads, contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.end)

        def first() -> Block:
            batch, future = waiting.popleft()
            return future.result() or encode_block(batch, tokens, encode)

        for batch in batches:
            waiting.append((batch, threads.submit(run, batch)))
            if len(waiting) >= QUEUED_PER_WORKER * len(workers):
                yield first()
        while waiting:
            yield first()


class Worker:
    """One process, which encodes one batch at a time. Its end of the pipe is closed with this object."""

    def __init__(self, job: bytes) -> None:
        """`job`: the pickled tokens and encoding."""
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

    def encode(self, batch: Sequence[Record]) -> Block | None:
        """The batch's block; None where the process is lost or can't encode it."""
        if self._is_lost:
            return None
        try:
            if not self._is_ready:
                self._pipe.send_bytes(self._job)
                self._is_ready = self._pipe.recv_bytes() == READY
            self._pipe.send_bytes(pickle.dumps(batch, protocol=5))
            found: Block | None = pickle.loads(self._pipe.recv_bytes())
            return found
        except (OSError, EOFError):
            self._is_lost = True
            if not self._is_ended:
                print("! a process that encodes records was lost; the job's own does its part", flush=True)
        return None

    def end(self) -> None:
        """End the process, whatever it does."""
        self._is_ended = True
        self._process.kill()
        self._process.wait()


def start_workers(tokens: Tokens, encode: Encode, count: int) -> list[Worker]:
    """So many processes; fewer, or none, where they can't be started or be sent these."""
    try:
        job = pickle.dumps((tokens, encode), protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):  # a local function, for example
        return []
    workers: list[Worker] = []
    with contextlib.suppress(OSError):
        while len(workers) < count:
            workers.append(Worker(job))
    return workers


def serve(pipe: Connection) -> None:
    """Encode what comes through the pipe until it is closed. A batch that raises is answered with None: the process
    that sent it raises the same when it encodes it."""
    tokens, encode = pickle.loads(pipe.recv_bytes())
    pipe.send_bytes(READY)
    while True:
        batch = pickle.loads(pipe.recv_bytes())
        try:
            found: Block | None = encode_block(batch, tokens, encode)
        except Exception:
            found = None
        pipe.send_bytes(pickle.dumps(found, protocol=5))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        serve(Connection(int(sys.argv[1])))
