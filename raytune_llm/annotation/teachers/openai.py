"""A teacher behind an OpenAI-compatible URL: a provider, vLLM's server, or this project's own endpoint.

The `openai` client sends the requests. It retries lost connections and HTTP 408, 409, 429 and 5xx with growing pauses,
or after the server's Retry-After of up to two minutes. Here are the concurrency, the pace, and the cost, from the usage
that the server reports and the configured prices. The API key comes from an environment variable, is sent in the
requests' header only, over https unless the server is on this machine, and no redirect is followed with it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, Secret, TeacherError, Workers
from raytune_llm.errors import require


@dataclass(frozen=True, kw_only=True)
class OpenAITeacher:
    """A model of an OpenAI-compatible server."""

    base_url: str
    """The server's URL up to and including the version, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """The model's name on that server."""
    api_key_env: str | None
    """Environment variable that holds the API key; null = no key is sent."""
    chat: bool
    """Whether prompts go to chat/completions as a user's turn, else to completions as plain text."""
    max_tokens_name: str
    """The server's parameter for the longest answer: max_tokens, or max_completion_tokens for OpenAI's reasoning
    models."""
    concurrent_requests: int
    """Requests that one worker has in flight; ≥ 1."""
    requests_per_minute: float | None
    """Requests per minute of all workers together, retries included; > 0, or null for no limit."""
    max_retries: int
    """Retries of a failed request; ≥ 0."""
    timeout_seconds: float
    """Longest wait for a connection or for data of a response; > 0."""
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
            bool(key) and key.isascii() and key.isprintable() and " " not in key,
            "teacher.api_key_env",
            self.api_key_env,
            "an environment variable that holds the key, in ASCII without white space; set it",
        )
        return Secret(key)

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        client, headers = self._client(credential)

        def complete(requests: Sequence[Request], sampling: Sampling) -> list[Response]:
            with ThreadPoolExecutor(self.concurrent_requests) as threads:
                return list(threads.map(lambda request: self._complete(client, headers, request, sampling), requests))

        return complete

    def _client(self, credential: Secret | None) -> tuple[Any, dict[str, Any]]:
        """The openai client, and each request's headers in place of those from the client's OPENAI_… variables."""
        import openai

        rate = self.requests_per_minute
        pace = Pace(60.0 * self.workers.num_workers / rate if rate is not None else 0.0)
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key="none",  # null would read OPENAI_API_KEY
            max_retries=self.max_retries,
            timeout=self.timeout_seconds,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, event_hooks={"request": [lambda _: pace.wait()]}
            ),
        )
        return client, {
            "Authorization": openai.omit if credential is None else f"Bearer {credential.value}",
            "OpenAI-Organization": openai.omit,
            "OpenAI-Project": openai.omit,
        }

    def _complete(self, client: Any, headers: dict[str, Any], request: Request, sampling: Sampling) -> Response:
        """One completion. Raises TeacherError when the server gives none."""
        import openai

        endpoint = client.chat.completions if self.chat else client.completions
        messages = [{"role": "user", "content": request.prompt}]
        try:
            completion = endpoint.create(
                model=self.model,
                **({"messages": messages} if self.chat else {"prompt": request.prompt}),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed + request.sample,
                stop=list(sampling.stop) or openai.omit,
                extra_body={self.max_tokens_name: sampling.max_new_tokens},
                extra_headers=headers,
            )
        except openai.APIStatusError as error:
            raise TeacherError(f"{self.name}: HTTP {error.status_code}{_attempts(error)}: {_message(error)}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise TeacherError(f"{self.name}: no response{_attempts(error)}: {type(cause).__name__}: {cause}") from None
        except json.JSONDecodeError as error:
            raise TeacherError(f"{self.name}: the response is not JSON: {error}") from None
        return self._response(completion)

    def _response(self, completion: Any) -> Response:
        try:
            choice, usage = completion.choices[0], completion.usage
            text = choice.message.content if self.chat else choice.text
        except (AttributeError, IndexError, TypeError) as error:
            raise TeacherError(
                f"{self.name}: the response is not in OpenAI's format; it begins with: {str(completion)[:200]}"
            ) from error
        num_prompt_tokens = getattr(usage, "prompt_tokens", None) or 0
        num_completion_tokens = getattr(usage, "completion_tokens", None) or 0
        cost_usd = (
            num_prompt_tokens * self.usd_per_million_prompt_tokens
            + num_completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6
        return Response(text or "", num_prompt_tokens, num_completion_tokens, cost_usd, is_cut=False)


class Pace:
    """Lets threads through one by one, `seconds` apart."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next, self._lock = seconds, 0.0, threading.Lock()

    def wait(self) -> None:
        """Return when it is this thread's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._seconds
        time.sleep(turn - now)


def _attempts(error: Any) -> str:
    """How often an openai error's request was sent, where that was more than once."""
    retries = int(error.request.headers.get("x-stainless-retry-count", 0))
    return f" after {retries + 1} attempts" if retries else ""


def _message(error: Any) -> str:
    """The server's own words in an openai error."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    return str(message or error.message)[:500]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
