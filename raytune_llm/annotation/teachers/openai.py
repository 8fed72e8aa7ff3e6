"""A teacher behind an OpenAI-compatible URL: a provider, vLLM's server, or this project's own endpoint.

Requests of a batch run at the same time, paced to a rate; 408, 409, 429 and 5xx answers and lost connections are tried
again after a growing pause, or the one that the server asks for. What was spent is counted from the usage that the
server reports and the prices given. The key comes from an environment variable, goes nowhere but into the requests'
header, over https unless the server is this machine, and no redirect is followed with it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, Secret, TeacherError, Workers
from raytune_llm.errors import require

LONGEST_PAUSE_SECONDS = 60.0
TRY_AGAIN = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class OpenAITeacher:
    """A model by its name at a URL."""

    base_url: str
    """Up to and with the version, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there."""
    api_key_env: str | None
    """Environment variable that holds the API key; null = no key is sent."""
    chat: bool
    """Whether prompts go to chat/completions as a user's turn, else to completions as plain text."""
    max_tokens_name: str
    """What the server calls the longest answer: max_tokens, or max_completion_tokens for OpenAI's reasoning models."""
    concurrent_requests: int
    """Requests of one worker in flight at the same time; ≥ 1."""
    requests_per_minute: float | None
    """Requests started in a minute, all workers together; > 0, or null for no limit."""
    max_retries: int
    """Times a request that failed is tried again; ≥ 0."""
    timeout_seconds: float
    """Longest wait for one answer; > 0."""
    usd_per_million_prompt_tokens: float
    """Price, US dollars; ≥ 0."""
    usd_per_million_completion_tokens: float
    """Price, US dollars; ≥ 0."""
    workers: Workers

    is_present = True

    def __post_init__(self) -> None:
        url = urllib.parse.urlsplit(self.base_url)
        require(
            url.scheme in ("http", "https") and bool(url.hostname),
            "teacher.base_url",
            self.base_url,
            "http:// or https:// with a host",
        )
        require(
            self.api_key_env is None or url.scheme == "https" or _is_loopback(url.hostname or ""),
            "teacher.base_url",
            self.base_url,
            "https:// when a key is sent to another machine",
        )
        require(self.concurrent_requests >= 1, "teacher.concurrent_requests", self.concurrent_requests, "≥ 1")
        require(
            self.requests_per_minute is None or self.requests_per_minute > 0,
            "teacher.requests_per_minute",
            self.requests_per_minute,
            "> 0 or null",
        )
        require(self.max_retries >= 0, "teacher.max_retries", self.max_retries, "≥ 0")
        require(self.timeout_seconds > 0, "teacher.timeout_seconds", self.timeout_seconds, "> 0")
        for name in ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"):
            require(getattr(self, name) >= 0, f"teacher.{name}", getattr(self, name), "≥ 0")

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url}"

    def identity(self, registry_dir: str) -> dict[str, Any]:
        return {"base_url": self.base_url.rstrip("/"), "model": self.model, "chat": self.chat}

    def credential(self) -> Secret | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "")
        require(
            bool(key), "teacher.api_key_env", self.api_key_env, "an environment variable that holds the key; set it"
        )
        return Secret(key)

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        rate = self.requests_per_minute
        pace = Pace(60.0 * self.workers.num_workers / rate if rate is not None else 0.0)

        def answer(asks: Sequence[Request], sampling: Sampling) -> list[Response]:
            with ThreadPoolExecutor(self.concurrent_requests) as threads:
                return list(threads.map(lambda ask: self._ask(ask, sampling, credential, pace), asks))

        return answer

    def _ask(self, ask: Request, sampling: Sampling, credential: Secret | None, pace: Pace) -> Response:
        """One answer. Raises TeacherError when it can't be had."""
        path = "chat/completions" if self.chat else "completions"
        body = {
            "model": self.model,
            **({"messages": [{"role": "user", "content": ask.prompt}]} if self.chat else {"prompt": ask.prompt}),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed + ask.sample,
            self.max_tokens_name: sampling.max_new_tokens,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
        }
        headers = {"Content-Type": "application/json"}
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential.value}"
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/{path}", json.dumps(body).encode(), headers, method="POST"
        )
        return self._said(self._sent(request, pace))

    def _sent(self, request: urllib.request.Request, pace: Pace) -> Any:
        """The JSON that a request is answered with, tried again where that may help."""
        for attempt in range(self.max_retries + 1):
            pace.wait()
            try:
                with _OPENER.open(request, timeout=self.timeout_seconds) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason, pause = _refusal(error), _asked_pause(error)
                if error.code not in TRY_AGAIN:
                    raise TeacherError(f"{self.name} refuses: {reason}") from None
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError, ValueError) as error:
                reason, pause = f"{type(error).__name__}: {error}", None
            if attempt < self.max_retries:
                growing = random.uniform(0.5, 1.0) * min(2.0**attempt, LONGEST_PAUSE_SECONDS)
                time.sleep(growing if pause is None else pause)
        raise TeacherError(f"{self.name} gave no answer in {self.max_retries + 1} attempts; the last: {reason}")

    def _said(self, answer: Any) -> Response:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text = choice["message"]["content"] if self.chat else choice["text"]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise TeacherError(f"{self.name} answers in a form that isn't OpenAI's: {str(answer)[:200]}") from error
        prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        prices = self.usd_per_million_prompt_tokens, self.usd_per_million_completion_tokens
        cost = (prompt * prices[0] + completion * prices[1]) / 1e6
        return Response(text or "", prompt, completion, cost, is_cut=False)


class Pace:
    """Lets threads through one by one, `seconds` apart."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next, self._lock = seconds, 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._seconds
        time.sleep(turn - now)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _refusal(error: urllib.error.HTTPError) -> str:
    """Status and message of an answer that is an error."""
    try:
        body = error.read(4096).decode(errors="replace")
        found = json.loads(body).get("error", body)
        message = found.get("message", body) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError, OSError):
        message = error.reason
    return f"{error.code}: {message}"


def _asked_pause(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait; None where it doesn't, or not in seconds."""
    try:
        return min(max(float(error.headers.get("Retry-After", "")), 0.0), LONGEST_PAUSE_SECONDS)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
