"""A model behind an OpenAI-compatible URL: the one place that sends requests, for teachers and judges.

The `openai` client retries lost connections and HTTP 408, 409, 429 and 5xx with growing pauses, or after the server's
Retry-After of up to two minutes. The API key comes from an environment variable, is sent in the requests' header only,
over https unless the server is on this machine, and no redirect is followed with it.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytune_llm.errors import require

Messages = Sequence[Mapping[str, str]]
"""A conversation: turns of {"role", "content"}."""


@dataclass(frozen=True)
class Secret:
    """A credential on its way to the client; never printed."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer and what it counted."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int


class ServerError(RuntimeError):
    """The server can't be reached, refuses a request, or responds in an unknown format."""


class Server:
    """A connection, shared by threads."""

    def __init__(
        self,
        base_url: str,
        model: str,
        credential: Secret | None,
        *,
        max_retries: int,
        timeout_seconds: float,
        seconds_apart: float,
    ) -> None:
        """seconds_apart: the least time between two requests, retries included; 0 = no limit."""
        import openai

        for library in ("openai", "httpx", "httpx2"):  # a line for each request and each retry
            logging.getLogger(library).setLevel(logging.WARNING)
        pace = Pace(seconds_apart)
        self._model = model
        self.name = f"{model} at {base_url}"
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key="none",  # null would read OPENAI_API_KEY
            max_retries=max_retries,
            timeout=timeout_seconds,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, event_hooks={"request": [lambda _: pace.wait()]}
            ),
        )
        # in place of those from the client's OPENAI_… variables
        self._headers: dict[str, Any] = {
            "Authorization": openai.omit if credential is None else f"Bearer {credential.value}",
            "OpenAI-Organization": openai.omit,
            "OpenAI-Project": openai.omit,
        }

    def chat(self, messages: Messages, **arguments: Any) -> Completion:
        """The next turn of a conversation. arguments: of chat/completions. Raises ServerError."""
        return self._complete(self._client.chat.completions, {"messages": list(messages), **arguments}, chat=True)

    def continue_text(self, prompt: str, **arguments: Any) -> Completion:
        """The continuation of a text. arguments: of completions. Raises ServerError."""
        return self._complete(self._client.completions, {"prompt": prompt, **arguments}, chat=False)

    def _complete(self, endpoint: Any, arguments: dict[str, Any], *, chat: bool) -> Completion:
        import openai

        given = {name: openai.omit if value is None else value for name, value in arguments.items()}
        try:
            found = endpoint.create(model=self._model, **given, extra_headers=self._headers)
        except openai.APIStatusError as error:
            raise ServerError(f"{self.name}: HTTP {error.status_code}{_attempts(error)}: {_message(error)}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ServerError(f"{self.name}: no response{_attempts(error)}: {type(cause).__name__}: {cause}") from None
        except json.JSONDecodeError as error:
            raise ServerError(f"{self.name}: the response is not JSON: {error}") from None
        try:
            choice, usage = found.choices[0], found.usage
            text = choice.message.content if chat else choice.text
        except (AttributeError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.name}: the response is not in OpenAI's format; it begins with: {str(found)[:200]}"
            ) from error
        counts = (getattr(usage, name, None) or 0 for name in ("prompt_tokens", "completion_tokens"))
        return Completion(text or "", *counts)


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


def check_url(key: str, base_url: str, api_key_env: str | None) -> None:
    """Refuse a URL that is none, or that a key can't be sent to. `key`: of the config. Raises InputError."""
    url = urllib.parse.urlsplit(base_url)
    require(url.scheme in ("http", "https") and bool(url.hostname), key, base_url, "http:// or https:// with a host")
    is_safe = api_key_env is None or url.scheme == "https" or _is_loopback(url.hostname or "")
    require(is_safe, key, base_url, "https:// when a key is sent to another machine")


def secret_of(key: str, api_key_env: str | None) -> Secret | None:
    """The key in an environment variable, None where none is named. Raises InputError when it is missing."""
    if api_key_env is None:
        return None
    found = os.environ.get(api_key_env, "")
    require(
        bool(found) and found.isascii() and found.isprintable() and " " not in found,
        key,
        api_key_env,
        "an environment variable that holds the key, in ASCII without white space; set it",
    )
    return Secret(found)


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
