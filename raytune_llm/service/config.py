"""The config of the tuning service: the fields of conf/service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import InputError, require
from raytune_llm.service.answers.base import Answers
from raytune_llm.serving.deploy.config import is_loopback


@dataclass(frozen=True, kw_only=True)
class Auto:
    """What a hyperparameter given as "auto" is swept over."""

    n_epochs: tuple[int, ...]
    """Passes over the data at which every trial is evaluated; ≥ 1."""
    batch_size: tuple[int, ...]
    """Examples a step; those larger than the training set are left out. ≥ 1."""
    learning_rate_multiplier: tuple[float, ...]
    """Times the rate recommended for the base; > 0."""
    adapter_size: tuple[int, ...]
    """LoRA ranks; ≥ 1."""
    max_steps: int
    """Optimizer steps of one trial, at most; longer epochs are cut. ≥ 1."""

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size", "learning_rate_multiplier", "adapter_size"):
            values = getattr(self, name)
            require(bool(values) and min(values) > 0, f"service.auto.{name}", list(values), "numbers > 0")
        require(self.max_steps >= 1, "service.auto.max_steps", self.max_steps, "≥ 1")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A tuning service in OpenAI's and Vertex's words."""

    host: str
    """Address to listen on. 127.0.0.1 is only reachable from this machine; any other needs service.api_key_env."""
    port: int
    """Port to listen on; 1 to 65535. A busy port is refused before anything starts."""
    api_key_env: str | None
    """Environment variable with the clients' API keys, comma-separated, each as it is or by its hash, sha256:HEX; null
    requires none (loopback only). Each key sees its own files, jobs and models only."""
    models: tuple[str, ...]
    """The bases offered, each by its name in conf/model; model=… means the same."""
    overrides: dict[str, Any]
    """Nested keys that every job has, e.g. {tuning: {eval_every: 10}}; model.KEY=… means overrides.model.KEY=…."""
    ray_address: str | None
    """Ray's job server, as http://HOST:8265; null = that of the cluster on this machine, or one of the service's own,
    which keeps running when the service ends."""
    max_jobs: int
    """Jobs that run at once, of all keys; ≥ 1."""
    max_jobs_per_key: int | None
    """Jobs of one key that run at once; ≥ 1, or null for no limit of its own."""
    max_queued_per_key: int
    """Unfinished jobs that one key may have; further ones are answered 429. ≥ 1."""
    device_hours_per_key: float | None
    """GPU hours (hours of a job where there is no GPU) that the jobs of one key may take in all; > 0, or null for no
    limit. A key that has none left creates no job, and its running jobs are paused."""
    max_file_bytes: int
    """Largest upload; ≥ 1024."""
    max_stored_bytes_per_key: int
    """Bytes of files that one key may keep; ≥ 1024."""
    data_prefixes: tuple[str, ...]
    """Beginnings of URIs that jobs may read besides uploaded files, e.g. gs://bucket/tuning/; none by default."""
    check_timeout_seconds: float
    """How long the check of a job's files may take; > 0."""
    poll_seconds: float
    """How often jobs are looked after; > 0."""
    auto: Auto
    answers: Answers
    """Where chats are answered (conf/service/answers)."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, "service.port", self.port, "1 to 65535")
        require(bool(self.models), "service.models", list(self.models), "names of conf/model, e.g. model=demo")
        for name in ("max_jobs", "max_queued_per_key"):
            require(getattr(self, name) >= 1, f"service.{name}", getattr(self, name), "≥ 1")
        most = self.max_jobs_per_key
        require(most is None or most >= 1, "service.max_jobs_per_key", most, "≥ 1 or null")
        hours = self.device_hours_per_key
        require(hours is None or hours > 0, "service.device_hours_per_key", hours, "> 0 or null")
        for name in ("max_file_bytes", "max_stored_bytes_per_key"):
            require(getattr(self, name) >= 1024, f"service.{name}", getattr(self, name), "≥ 1024")
        for name in ("check_timeout_seconds", "poll_seconds"):
            require(getattr(self, name) > 0, f"service.{name}", getattr(self, name), "> 0")
        if self.api_key_env is None and not is_loopback(self.host):
            raise InputError(
                f"service.host={self.host} is reachable from other machines and needs API keys: put them into an "
                "environment variable and name it by service.api_key_env=NAME, or listen on service.host=127.0.0.1"
            )
