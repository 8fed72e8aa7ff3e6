"""A judge behind an OpenAI-compatible URL: a provider, vLLM's server, or this project's own endpoint.

Pairwise judging by a language model, in both orders (Zheng et al., 2023, arXiv 2306.05685). Leaves out scores of single
answers and several judges at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from raytune_llm.errors import require
from raytune_llm.evaluation.judges.base import JudgeSession, Prices, Rules
from raytune_llm.models.openai_client import Server, check_url, secret_of


@dataclass(frozen=True, kw_only=True)
class OpenAIJudge:
    """A model of an OpenAI-compatible server compares the tuned model's answers with the other systems'."""

    base_url: str
    """The server's URL up to and including the version, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """The model's name on that server."""
    api_key_env: str | None
    """Environment variable that holds the API key; null = no key is sent."""
    temperature: float | None
    """≥ 0; 0 = greedy; null = not sent, for models that refuse it."""
    max_tokens_name: str
    """The server's parameter for the longest reply: max_tokens, or max_completion_tokens for OpenAI's reasoning
    models."""
    max_new_tokens: int
    """Longest reply, tokens, reasoning included; ≥ 1."""
    concurrent_requests: int
    """Requests in flight; ≥ 1."""
    requests_per_minute: float | None
    """Requests per minute, retries included; > 0, or null for no limit."""
    max_retries: int
    """Retries of a request that failed (connection lost, HTTP 408, 409, 429, 5xx); ≥ 0."""
    timeout_seconds: float
    """Longest wait for a connection or for data of a reply; > 0."""
    usd_per_million_prompt_tokens: float | None
    """Price, US dollars; ≥ 0, or null where it is not known."""
    usd_per_million_completion_tokens: float | None
    """Price, US dollars; ≥ 0, or null where it is not known."""
    rules: Rules

    def __post_init__(self) -> None:
        key, rate = "evaluation.judge", self.requests_per_minute
        check_url(f"{key}.base_url", self.base_url, self.api_key_env)
        for name in ("max_new_tokens", "concurrent_requests"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "≥ 1")
        require(self.max_retries >= 0, f"{key}.max_retries", self.max_retries, "≥ 0")
        require(self.timeout_seconds > 0, f"{key}.timeout_seconds", self.timeout_seconds, "> 0")
        require(rate is None or rate > 0, f"{key}.requests_per_minute", rate, "> 0 or null")
        for name in ("temperature", "usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"):
            found = getattr(self, name)
            require(found is None or found >= 0, f"{key}.{name}", found, "≥ 0 or null")

    def open(self) -> JudgeSession:
        rate = self.requests_per_minute
        server = Server(
            self.base_url,
            self.model,
            secret_of("evaluation.judge.api_key_env", self.api_key_env),
            max_retries=self.max_retries,
            timeout_seconds=self.timeout_seconds,
            seconds_apart=0.0 if rate is None else 60.0 / rate,
        )
        longest = {self.max_tokens_name: self.max_new_tokens}
        arguments: dict[str, Any] = {"temperature": self.temperature, "extra_body": longest}
        return JudgeSession(
            name=server.name,
            identity={
                "base_url": self.base_url.rstrip("/"),
                "model": self.model,
                "temperature": self.temperature,
                **longest,
            },
            ask=partial(server.chat, **arguments),
            rules=self.rules,
            prices=Prices(prompt=self.usd_per_million_prompt_tokens, completion=self.usd_per_million_completion_tokens),
            max_new_tokens=self.max_new_tokens,
            concurrent_requests=self.concurrent_requests,
        )
