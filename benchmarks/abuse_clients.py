"""What strangers and careless clients do to an endpoint, all at once; abuse.py runs it in a process of its own.

    python benchmarks/abuse_clients.py PORT KEY SECONDS

KEY is a valid key of theirs, whose rate limit applies. Prints how often each kind was answered how, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

CLOSED = "closed"
BODY = {"model": "", "prompt": "A stranger asks", "max_tokens": 16, "temperature": 0}
HOLD_SECONDS = 60.0


class Strangers:
    """Each kind is one coroutine per connection, repeated until the time is over."""

    def __init__(self, port: int, key: str, model: str, ends: float) -> None:
        self._port, self._key, self._ends = port, key, ends
        self._body = {**BODY, "model": model}
        self.answers: dict[str, Counter[str]] = {}

    async def repeat(self, kind: str, act: Callable[[], Awaitable[str]], pause_seconds: float) -> None:
        counter = self.answers.setdefault(kind, Counter())
        while (left := self._ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    counter[await act()] += 1
            except TimeoutError:  # which is an OSError, too
                counter["held to the end"] += 1
            except (OSError, asyncio.IncompleteReadError):
                counter[CLOSED] += 1
            await asyncio.sleep(pause_seconds)

    async def slow_body(self) -> str:
        return await self._sent(self._head("POST", "/v1/completions", "Content-Length: 5000") + b"{")

    async def slow_headers(self) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            for number in range(int(HOLD_SECONDS)):
                writer.write(f"X-{number}: 1\r\n".encode())
                await writer.drain()
                with suppress(TimeoutError):
                    return _status(await asyncio.wait_for(reader.read(64), 1.0))
            return "held"
        finally:
            writer.close()

    async def huge_headers(self) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\nX-Huge: ")
            for _ in range(600):
                writer.write(b"x" * 100_000)
                await writer.drain()
            return _status(await reader.read(64))
        finally:
            writer.close()

    async def idle_connection(self) -> str:
        return await self._sent(b"")

    async def wrong_key(self) -> str:
        return await self._sent(self._post(json.dumps(self._body).encode(), key="guess"))

    async def wrong_json(self) -> str:
        return await self._sent(self._post(b'{"model": [' * 500))

    async def long_prompt(self) -> str:
        return await self._sent(self._post(json.dumps({**self._body, "prompt": "so it goes " * 81_000}).encode()))

    async def read_prompt(self) -> str:
        """One that fits into a context of 8,192 tokens, and begins as no other."""
        prompt = f"{secrets.token_hex(8)} " + "so it goes " * 1_300
        return await self._sent(self._post(json.dumps({**self._body, "prompt": prompt}).encode()))

    async def long_stops(self) -> str:
        stops = [str(number) * 200_000 for number in range(4)]
        return await self._sent(self._post(json.dumps({**self._body, "stop": stops}).encode()))

    async def disconnect(self) -> str:
        body = json.dumps({**self._body, "stream": True, "max_tokens": 200}).encode()
        return await self._sent(self._post(body), after_seconds=0.3)

    async def _sent(self, request: bytes, after_seconds: float | None = None) -> str:
        """The answer's status; with after_seconds, leaves without waiting for the rest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            await writer.drain()
            if after_seconds is not None:
                await asyncio.sleep(after_seconds)
                return "left"
            return _status(await reader.read(64))
        finally:
            writer.close()

    def _post(self, body: bytes, key: str | None = None) -> bytes:
        return self._head("POST", "/v1/completions", f"Content-Length: {len(body)}", key) + body

    def _head(self, method: str, path: str, header: str, key: str | None = None) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key or self._key}\r\n"
            f"Content-Type: application/json\r\n{header}\r\n\r\n"
        ).encode()


def _status(received: bytes) -> str:
    return received.split(b" ")[1].decode() if received.startswith(b"HTTP") else CLOSED


async def run(port: int, key: str, model: str, seconds: float) -> dict[str, Counter[str]]:
    strangers = Strangers(port, key, model, time.monotonic() + seconds)
    kinds: list[tuple[str, Callable[[], Awaitable[str]], int, float]] = [
        ("slow bodies", strangers.slow_body, 25, 0.5),
        ("slow headers", strangers.slow_headers, 25, 0.5),
        ("idle connections", strangers.idle_connection, 200, 1.0),
        ("wrong keys", strangers.wrong_key, 4, 0.2),
        ("wrong JSON", strangers.wrong_json, 2, 0.5),
        ("long prompts", strangers.long_prompt, 6, 2.0),
        ("prompts of 4,000 tokens", strangers.read_prompt, 2, 5.0),
        ("long stop strings", strangers.long_stops, 2, 2.0),
        ("huge headers", strangers.huge_headers, 1, 2.0),
        ("disconnects", strangers.disconnect, 4, 1.0),
    ]
    acts = [strangers.repeat(name, act, pause) for name, act, count, pause in kinds for _ in range(count)]
    await asyncio.gather(*acts)
    return strangers.answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])))))
