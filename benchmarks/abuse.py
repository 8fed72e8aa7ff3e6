"""Honest clients of an endpoint, undisturbed and then under abuse: seconds to the first token, pauses, wrong answers.

    python benchmarks/abuse.py adapter=NAME@1 home=HOME [serve.…=…]              two minutes of abuse
    python benchmarks/abuse.py --minutes 10 --undisturbed-seconds 60 adapter=… home=…

Starts the endpoint by jobs/serve.py in a process of its own, with an API key for each of 8 honest clients, which stream
greedy answers with a pause between two, and one for the strangers of abuse_clients.py, all limited to
serve.requests_per_minute. Reported for both times: p50 and p99 of an honest client's seconds to its first token, the
longest pause between two tokens, honest requests that failed, answers that differ from the first one to the same
prompt, the slowest /healthz (asked each 0.2 s), and the most resident memory of the replica and of the proxy. Aim: p99
under abuse at most 3 times that of before, /healthz within 1 s, no wrong answer. Prints a table; the last line is one
JSON object. The clients share the machine's cores with the endpoint. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
HONEST, REQUESTS_PER_MINUTE, ANSWER_TOKENS, PAUSE_SECONDS = 8, 120, 32, 1.0
READY_WITHIN_SECONDS, HEALTH_EVERY_SECONDS, STOP_WITHIN_SECONDS = 600.0, 0.2, 180.0
WARM_UP_SECONDS = 5.0
PROMPTS = [f"{who} missed the bus and {what}." for who in ("Ana", "Ben", "Cleo", "Dan") for what in ("ran", "sighed")]
PROCESSES = {"replica": "ServeReplica:raytune_llm:endpoint", "proxy": "ProxyActor"}


@dataclass
class Phase:
    """What was measured in one of the two times."""

    first_seconds: list[float] = field(default_factory=list)
    longest_pause_seconds: float = 0.0
    num_failed: int = 0
    num_wrong: int = 0
    health_seconds: float = 0.0
    num_health_failed: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def row(self) -> dict[str, float]:
        ordered = sorted(self.first_seconds) or [float("nan")]
        return {
            "honest answers": len(self.first_seconds),
            "first token p50, s": round(statistics.median(ordered), 3),
            "first token p99, s": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
            "longest pause, s": round(self.longest_pause_seconds, 3),
            "failed": self.num_failed,
            "wrong answers": self.num_wrong,
            "slowest /healthz, s": round(self.health_seconds, 3),
            "/healthz failed": self.num_health_failed,
            **{f"{name} peak, MB": round(size / 1e6) for name, size in self.peak_bytes.items()},
        }


class Observer:
    """The honest clients and the probes of health and memory."""

    def __init__(self, url: str, keys: Sequence[str], model: str, pids: dict[str, int]) -> None:
        self._url, self._keys, self._model, self._pids = url, keys, model, pids
        self._expected: dict[str, str] = {}

    async def measure(self, seconds: float) -> Phase:
        phase, ends = Phase(), time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            acts = [self._honest(client, number, key, phase, ends) for number, key in enumerate(self._keys)]
            await asyncio.gather(*acts, self._health(client, phase, ends), self._memory(phase, ends))
        return phase

    async def _honest(self, client: httpx.AsyncClient, number: int, key: str, phase: Phase, ends: float) -> None:
        await asyncio.sleep(number * PAUSE_SECONDS / HONEST)
        while time.monotonic() < ends:
            prompt = PROMPTS[number := (number + 1) % len(PROMPTS)]
            try:
                text = await self._answer(client, key, prompt, phase)
            except (httpx.HTTPError, KeyError, ValueError) as error:
                phase.num_failed += 1
                print(f"failed: {error!r}", file=sys.stderr)
            else:
                phase.num_wrong += self._expected.setdefault(prompt, text) != text
            await asyncio.sleep(PAUSE_SECONDS)

    async def _answer(self, client: httpx.AsyncClient, key: str, prompt: str, phase: Phase) -> str:
        body = {"model": self._model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        last, text, has_begun = time.monotonic(), "", False
        async with client.stream("POST", f"{self._url}/v1/completions", json=body, headers=headers) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic()
                if has_begun:
                    phase.longest_pause_seconds = max(phase.longest_pause_seconds, now - last)
                else:
                    phase.first_seconds.append(now - last)
                has_begun, last = True, now
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        return text

    async def _health(self, client: httpx.AsyncClient, phase: Phase, ends: float) -> None:
        while (begun := time.monotonic()) < ends:
            try:
                phase.num_health_failed += (await client.get(f"{self._url}/healthz")).status_code != 200
            except httpx.HTTPError:
                phase.num_health_failed += 1
            phase.health_seconds = max(phase.health_seconds, time.monotonic() - begun)
            await asyncio.sleep(HEALTH_EVERY_SECONDS)

    async def _memory(self, phase: Phase, ends: float) -> None:
        while time.monotonic() < ends:
            for name, pid in self._pids.items():
                phase.peak_bytes[name] = max(phase.peak_bytes.get(name, 0), resident_bytes(pid))
            await asyncio.sleep(0.5)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Processes that a process started, itself or through others, with their titles."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child), Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        yield from descendants(int(child))


@contextmanager
def endpoint(overrides: Sequence[str], port: int, keys: Sequence[str], output: Path) -> Iterator[int]:
    """jobs/serve.py in a process of its own; its pid."""
    limits = ["serve.api_key_env=ABUSE_KEYS", f"serve.requests_per_minute={REQUESTS_PER_MINUTE}"]
    command = [sys.executable, str(ROOT / "jobs/serve.py"), f"serve.port={port}", *limits, *overrides]
    environment = {**os.environ, "ABUSE_KEYS": ",".join(keys)}
    with output.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while "Ctrl-C stops it." not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the endpoint didn't start:\n{output.read_text()}")
            time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait(STOP_WITHIN_SECONDS)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run(overrides: Sequence[str], undisturbed_seconds: float, seconds: float) -> dict[str, object]:
    port, keys = free_port(), [secrets.token_hex(16) for _ in range(HONEST + 1)]
    model = next(one.partition("=")[2] for one in overrides if one.startswith(("adapter=", "version=")))
    with tempfile.TemporaryDirectory() as folder, endpoint(overrides, port, keys, Path(folder, "output")) as pid:
        titles = list(descendants(pid))
        pids = {name: next(pid for pid, title in titles if part in title) for name, part in PROCESSES.items()}
        observer = Observer(f"http://127.0.0.1:{port}", keys[:HONEST], model, pids)
        asyncio.run(observer.measure(WARM_UP_SECONDS))
        undisturbed = asyncio.run(observer.measure(undisturbed_seconds))
        strangers = [sys.executable, str(ROOT / "benchmarks/abuse_clients.py"), str(port), keys[-1], model]
        with subprocess.Popen([*strangers, str(seconds)], stdout=subprocess.PIPE, text=True) as process:
            abused = asyncio.run(observer.measure(seconds))
            assert process.stdout is not None
            answers = json.loads(process.stdout.read())
    return {"undisturbed": undisturbed.row(), "abused": abused.row(), "strangers": answers}


def table(found: dict[str, dict[str, float]], first: str) -> str:
    rows = [[first, *found], *([name, *(str(one[name]) for one in found.values())] for name in found["abused"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align: Callable[[str, int], str] = str.ljust
    return "\n".join("  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--undisturbed-seconds", type=float, default=30.0)
    parser.add_argument("overrides", nargs="+", help="of jobs/serve.py: adapter=…, home=…")
    chosen = parser.parse_args()
    found = run(chosen.overrides, chosen.undisturbed_seconds, 60 * chosen.minutes)
    print(table({name: found[name] for name in ("undisturbed", "abused")}, ""))  # type: ignore[misc]
    for kind, answers in found["strangers"].items():  # type: ignore[attr-defined]
        print(f"{kind}: {', '.join(f'{answer} × {count}' for answer, count in answers.items())}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
