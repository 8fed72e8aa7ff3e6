"""The endpoint as jobs/serve.py starts it, among strangers: its proxy's connections, its errors, its end."""

import concurrent.futures
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serving_world import make_base, publish, write_adapter
from test_failures import free_port

from raytune_llm.serving.deploy.connections import HEADER_SECONDS, MAX_CONNECTIONS
from raytune_llm.stores.registry import Registry

ROOT = Path(__file__).parents[3]
UNFINISHED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
)
READY_WITHIN_SECONDS = 120


class Served:
    """jobs/serve.py in a process of its own."""

    def __init__(self, home, output):
        self.port, self.output = free_port(), output
        self.url = f"http://127.0.0.1:{self.port}"
        keys = ["serve.max_waiting_requests=200", "serve.body_timeout_seconds=4", "serve.max_tokens=100"]
        command = [sys.executable, "jobs/serve.py", "adapter=wit@1", f"home={home}", f"serve.port={self.port}", *keys]
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, f"hydra.run.dir={home}/hydra"], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while "Ctrl-C stops it." not in output.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)

    def connection(self, sent):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(sent)
        return connection

    def get(self, path):
        """Status, headers and body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                found = response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            found = error.code, error.headers, error.read()
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    publish(Registry(str(root / "home/registry")), base, "wit", write_adapter(base, root / "wit", seed=1))
    served = Served(root / "home", root / "output")
    yield served
    served.process.kill()
    served.process.wait()


def received(connection):
    """Status line and error of what a connection delivers until it is closed."""
    whole = b""
    while chunk := connection.recv(65536):
        whole += chunk
    head, _, body = whole.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), json.loads(body)["error"] if body else None


def test_progress_is_printed_while_it_starts(served):
    lines = [
        line.partition(") ")[2] or line for line in re.sub("\x1b[^m]*m", "", served.output.read_text()).splitlines()
    ]
    lines = [line.removeprefix(")").strip() for line in lines]
    steps = [
        "the endpoint is starting …",
        "loading tiny …",
        "tiny is loaded (",
        "checking wit@1 against PEFT …",
        "checking the endpoint's answers over HTTP …",
        "parity check passed: wit@1",
    ]
    at = [next(i for i, line in enumerate(lines) if step in line) for step in steps]
    assert at[-2] < at[-1], lines  # the replica's own lines come through Ray, a moment later


def test_unfinished_requests_stop_nobody_and_are_ended(served):
    begun = time.monotonic()
    slow = served.connection(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    silent = served.connection(b"")
    held = [served.connection(UNFINISHED) for _ in range(100)]
    status, _, body = served.get("/healthz")
    assert status == 200 and b'"ok"' in body
    assert not select.select([slow, silent, *held], [], [], 0)[0]  # it was answered while all of them were open
    status, error = received(held[0])
    assert (status, error["code"]) == ("HTTP/1.1 408 Request Timeout", "request_timeout")
    assert error["message"] == "the request's body did not arrive within 4 seconds"
    assert time.monotonic() - begun > 3.5
    status, error = received(slow)
    assert status == "HTTP/1.1 408 Request Timeout"
    assert error["message"] == "the request's headers did not arrive within 10 seconds"
    assert received(silent) == ("", None)
    assert time.monotonic() - begun > HEADER_SECONDS - 0.5
    for connection in held:
        connection.close()


def test_clients_that_leave_with_unfinished_bodies_are_no_errors(served):
    """The endpoint's last test reads its log."""
    for _ in range(12):
        held = [served.connection(UNFINISHED) for _ in range(60)]
        for connection in held:
            connection.close()
    assert served.get("/healthz")[0] == 200


def test_headers_are_bounded_in_bytes_and_nonsense_is_refused(served):
    large, sent = served.connection(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: "), 0
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while sent < 60_000_000:
            large.sendall(b"x" * 100_000)
            sent += 100_000
            time.sleep(0.001)
    assert sent < 20_000_000
    status, error = received(served.connection(b"\x00\x01\r\n\r\n"))
    assert (status, error["message"]) == ("HTTP/1.1 400 Bad Request", "this is no valid HTTP request")


def test_the_oldest_idle_connections_make_room_for_new_ones(served):
    held = [served.connection(b"GET /heal") for _ in range(MAX_CONNECTIONS + 50)]
    assert served.get("/healthz")[0] == 200
    assert held[0].recv(1) == b""
    held[-1].sendall(b"thz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert held[-1].recv(15) == b"HTTP/1.1 200 OK"
    for connection in held:
        connection.close()


def test_sigterm_ends_open_answers_and_refuses_new_ones(served):
    """The last test of this endpoint."""
    begun = threading.Semaphore(0)

    def ask(seed):
        body = {"model": "wit", "prompt": "Miss the bus", "max_tokens": 100, "stream": True, "seed": seed}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(served.url + "/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            begun.release()
            return [line for line in response if line.startswith(b"data")]

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(ask, seed) for seed in range(100)]
        for _ in range(30):
            assert begun.acquire(timeout=60)
        os.kill(served.process.pid, signal.SIGTERM)
        states = []
        while served.process.poll() is None and not all(future.done() for future in asked):
            states.append(served.get("/healthz")[::2])
            if states[-1][0] == 503:
                status, headers, body = served.get("/v1/models")
                error = json.loads(body)["error"]
                assert (status, error["code"], headers["retry-after"]) == (503, "unavailable", "5")
                assert error["message"] == "this endpoint is draining; try again later"
                break
        assert states[-1] == (503, b'{"status":"draining"}')
        assert not all(future.done() for future in asked)
    refused = [error for future in asked if (error := future.exception()) is not None]
    assert all(isinstance(error, urllib.error.HTTPError) and error.code == 503 for error in refused)
    answers = [future.result() for future in asked if future.exception() is None]
    assert len(answers) >= 30 and all(lines[-1] == b"data: [DONE]\n" for lines in answers)
    assert served.process.wait(30) == 0
    output = served.output.read_text()
    lines = output.splitlines()
    last = "stopping: new requests are refused, open answers have up to 120 s to end; Ctrl-C again ends at once"
    assert "stopped" in lines[lines.index(last) :]
    assert "Traceback" not in output


def test_a_second_signal_ends_the_process_with_one_line():
    code = "from raytune_llm.jobs import stopping; import os; stopping.end_at_next_signal(); os.kill(os.getpid(), 2)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "ended at once; open answers are lost\n")


def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path):
    code = (
        "from raytune_llm.serving.deploy.cache_folder import CacheFolder; c = CacheFolder(); print(c.path, flush=True)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def process(end):
        return subprocess.Popen(
            [sys.executable, "-c", code + end],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def folder(one):
        return Path(one.stdout.readline().strip())

    living = process("; input()")
    folders = [folder(living)]
    killed = process("; import os; os.kill(os.getpid(), 9)")
    folders.append(folder(killed))
    killed.wait()
    assert all(folder.is_dir() for folder in folders)
    process("").wait()
    assert [folder.is_dir() for folder in folders] == [True, False]
    assert len(list(folders[0].parent.glob("*/"))) == 1
    living.kill()
    living.wait()
