"""A Ray head node of the service's own, for machines that have no cluster.

It outlives the service, and its jobs with it: the next service of the same home finds it again. It listens on loopback
alone and asks for a token that is kept in a file for this user. Ray's own files are in a folder of their own, so that
no other command of this machine takes it for a cluster to join.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from raytune_llm import cluster
from raytune_llm.compat import loopback_node
from raytune_llm.errors import InputError
from raytune_llm.service.local_state import folder_of
from raytune_llm.service.process_tree import descends_from, is_running
from raytune_llm.service.runner import RayRunner
from raytune_llm.session import FILE, LOOPBACK, MODE, TOKEN_BYTES

STATE, TOKEN, LOG = "head.json", "token", "head.log"
START_SECONDS = 180.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head node that was started."""

    address: str
    """Of its job server: http://127.0.0.1:PORT."""
    gcs: str
    """As RAY_ADDRESS has it."""
    pid: int
    scratch: str
    """The folder of Ray's own files."""
    token_path: str

    @property
    def runner(self) -> RayRunner:
        """Runs commands on it."""
        return RayRunner(self.address, Path(self.token_path).read_text())

    @property
    def environment(self) -> Mapping[str, str]:
        """With which a process of this user joins it."""
        return {"RAY_ADDRESS": self.gcs, MODE: "token", FILE: self.token_path}

    @property
    def is_running(self) -> bool:
        return is_running(self.pid, self.scratch)


def find_or_start(home: str, *, hidden: Collection[str] = (), options: Collection[str] = ()) -> Head:
    """The head node of a home's service, started where none runs any more; returns when it takes jobs. The caller holds
    local_state.only_service.

    Args:
        hidden: environment variables that it and its jobs don't get.
        options: more of `ray start`.

    Raises:
        InputError: it doesn't start.
    """
    folder = folder_of(home)
    head = _stored(folder)
    if head is not None and not head.is_running:
        stop(home)
        head = None
    head = head or _start(folder, hidden, options)
    _wait(head, folder / LOG)
    return head


def running(home: str) -> Head | None:
    """The head node of a home's service; None where none runs."""
    head = _stored(folder_of(home))
    return head if head is not None and head.is_running else None


def stop(home: str) -> None:
    """End the head node of a home's service, its jobs and all of its processes; nothing where there is none."""
    folder = folder_of(home)
    head = _stored(folder)
    if head is None:
        return
    if head.is_running:
        os.kill(head.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while left := descends_from(head.pid, head.scratch):
        if not head.is_running or time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(head.pid, os.WNOHANG)  # where this process started it
    shutil.rmtree(head.scratch, ignore_errors=True)
    (folder / STATE).unlink()


def _start(folder: Path, hidden: Collection[str], options: Collection[str]) -> Head:
    token = folder / TOKEN
    token.unlink(missing_ok=True)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(TOKEN_BYTES))
    gcs, dashboard, client, agent = _free_ports(4)
    scratch = tempfile.mkdtemp(prefix="rtl-", dir="/tmp")  # short: Ray's sockets are in it
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={scratch}", f"--node-ip-address={LOOPBACK}", "--include-dashboard=true", *options),
    ]
    if (num_gpus := cluster.uncounted_gpus()) and not any(option.startswith("--num-gpus") for option in options):
        command.append(f"--num-gpus={num_gpus}")
    own = {"RAY_ADDRESS": f"{LOOPBACK}:{gcs}", MODE: "token", FILE: str(token)}
    with (folder / LOG).open("wb") as log, loopback_node():
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=_environment(hidden) | own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    head = Head(
        address=f"http://{LOOPBACK}:{dashboard}",
        gcs=own["RAY_ADDRESS"],
        pid=process.pid,
        scratch=scratch,
        token_path=str(token),
    )
    temporary = folder / f".{STATE}"
    temporary.write_text(json.dumps(asdict(head)))
    temporary.replace(folder / STATE)
    return head


def _environment(hidden: Collection[str]) -> dict[str, str]:
    """Of the head and its jobs: this process's without what it has for another cluster, with the programs of this
    installation first."""
    authentication = (MODE, "RAY_AUTH_TOKEN", FILE)
    kept = {name: value for name, value in os.environ.items() if name not in (*hidden, *authentication)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**cluster.ENVIRONMENT, **kept, "PATH": path}


def _stored(folder: Path) -> Head | None:
    try:
        return Head(**json.loads((folder / STATE).read_text()))
    except FileNotFoundError:
        return None


def _wait(head: Head, log: Path) -> None:
    """Until it answers one who has its token."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            head.runner.seen("none")
            return
        except ConnectionError as error:
            if not head.is_running or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise InputError(
                    f"the service's Ray head node (process {head.pid}) doesn't take jobs: {error}; its log {log} ends "
                    f"with\n{tail}"
                ) from error
        time.sleep(POLL_SECONDS)


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
