"""A teacher behind an OpenAI-compatible URL: a provider, vLLM's server, or this project's own endpoint.

models/openai_client.py sends the requests. Here are the concurrency, the pace, and the cost, from the usage that the
server reports and the configured prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, TeacherError, Workers
from raytune_llm.errors import require
from raytune_llm.models.openai_client import Secret, Server, ServerError, check_url, secret_of


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
        check_url("teacher.base_url", self.base_url, self.api_key_env)
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
        return secret_of("teacher.api_key_env", self.api_key_env)

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        rate = self.requests_per_minute
        server = Server(
            self.base_url,
            self.model,
            credential,
            max_retries=self.max_retries,
            timeout_seconds=self.timeout_seconds,
            seconds_apart=60.0 * self.workers.num_workers / rate if rate is not None else 0.0,
        )

        def complete(requests: Sequence[Request], sampling: Sampling) -> list[Response]:
            with ThreadPoolExecutor(self.concurrent_requests) as threads:
                return list(threads.map(lambda request: self._complete(server, request, sampling), requests))

        return complete

    def _complete(self, server: Server, request: Request, sampling: Sampling) -> Response:
        """One completion. Raises TeacherError when the server gives none."""
        arguments: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed + request.sample,
            "stop": list(sampling.stop) or None,
            "extra_body": {self.max_tokens_name: sampling.max_new_tokens},
        }
        try:
            if self.chat:
                found = server.chat([{"role": "user", "content": request.prompt}], **arguments)
            else:
                found = server.continue_text(request.prompt, **arguments)
        except ServerError as error:
            raise TeacherError(str(error)) from None
        cost_usd = (
            found.num_prompt_tokens * self.usd_per_million_prompt_tokens
            + found.num_completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6
        return Response(found.text, found.num_prompt_tokens, found.num_completion_tokens, cost_usd, is_cut=False)
