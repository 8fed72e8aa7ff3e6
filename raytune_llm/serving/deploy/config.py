"""The config of an endpoint: the fields of conf/serve."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass

from raytune_llm.errors import InputError, require
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.engine.base import EngineConfig

HASHED = "sha256:"
ORIGIN = re.compile(r"\*|https?://[^/\s?#]+")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """An OpenAI-compatible endpoint."""

    deploy: bool
    """Whether a sweep ends with its winner deployed; jobs/serve.py always deploys."""
    host: str
    """Address to listen on. 127.0.0.1 is only reachable from this machine; any other needs serve.api_key_env."""
    port: int
    """Port to listen on; 1 to 65535. A busy port is refused before anything starts."""
    num_replicas: int
    """Minimum number of replicas, each with the base and adapters in memory; ≥ 1."""
    max_replicas: int
    """Maximum number of replicas: above num_replicas, Ray Serve adds and removes replicas by the number of open
    answers. ≥ num_replicas."""
    target_open_answers: int
    """Open answers per replica that autoscaling aims at; ≥ 1."""
    upscale_delay_seconds: float
    """How long there must be too many open answers before a replica is added; > 0."""
    downscale_delay_seconds: float
    """How long there must be too few before a replica is removed, which finishes its answers first; > 0."""
    max_concurrent_requests: int
    """Answers that one replica decodes at once; further ones wait. ≥ 1."""
    max_waiting_requests: int
    """Answers that wait at one replica for a place among those; requests for more are answered 503 with retry-after.
    ≥ 0."""
    max_tokens: int
    """Longest answer, tokens; a request may set a lower limit. ≥ 1."""
    request_timeout_seconds: float
    """An answer that takes longer, from the request's arrival at the replica and waiting included, ends with error
    408; > 0."""
    body_timeout_seconds: float
    """A request whose body takes longer to arrive is answered 408; > 0."""
    drain_seconds: float
    """How long open answers may take to end when the endpoint is stopped or a replica is removed; new requests are
    refused meanwhile. > 0. What stops the process (a container's grace period) must wait longer."""
    max_body_bytes: int
    """Largest body of a request; larger ones are answered 413. ≥ 1024."""
    api_key_env: str | None
    """Environment variable with the clients' API keys, comma-separated; null requires none (loopback only). A key may
    be given by its hash, as sha256:HEX; replicas and files contain only hashes."""
    cors_origins: tuple[str, ...]
    """Origins of web pages whose scripts may ask the endpoint from a browser, e.g. https://example.org; "*" allows all
    of them; none by default."""
    requests_per_minute: int | None
    """Requests of one key per minute; further ones are answered 429. ≥ 1, or null for no limit."""
    tokens_per_minute: int | None
    """Tokens, of prompts and answers, of one key per minute. ≥ 1, or null for no limit."""
    max_on_demand: int
    """Versions that requests for NAME@number may load in addition to the named ones, if a version of NAME is served;
    beyond that the least recently used is evicted. Each passes a parity check before its first answer. ≥ 0; 0 loads
    none."""
    follow_seconds: float
    """How often each replica reads where the aliases of the served names point, with one read a name; a version that
    one points to by now is loaded and checked, then answers in place of the former. ≥ 0; 0 resolves references once,
    at the start."""
    discover: bool
    """Whether a request for any other version of the registry that is tuned from the same base loads it, among those
    of max_on_demand; needs max_on_demand ≥ 1."""
    config_file: str | None
    """File to write a config for `serve deploy` to, instead of starting the endpoint here; null starts it."""
    engine: EngineConfig
    """The decoding engine, local or vllm."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, "serve.port", self.port, "1 to 65535")
        for name in ("num_replicas", "max_concurrent_requests", "max_tokens", "target_open_answers"):
            require(getattr(self, name) >= 1, f"serve.{name}", getattr(self, name), "≥ 1")
        require(self.follow_seconds >= 0, "serve.follow_seconds", self.follow_seconds, "≥ 0")
        if self.discover and not self.max_on_demand:
            raise InputError("serve.discover=true needs serve.max_on_demand ≥ 1, the number of versions it may load")
        for name in ("max_on_demand", "max_waiting_requests"):
            require(getattr(self, name) >= 0, f"serve.{name}", getattr(self, name), "≥ 0")
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            require(limit is None or limit >= 1, f"serve.{name}", limit, "≥ 1 or null")
        require(self.max_replicas >= self.num_replicas, "serve.max_replicas", self.max_replicas, "≥ num_replicas")
        for name in (
            "request_timeout_seconds",
            "body_timeout_seconds",
            "drain_seconds",
            "upscale_delay_seconds",
            "downscale_delay_seconds",
        ):
            require(getattr(self, name) > 0, f"serve.{name}", getattr(self, name), "> 0")
        require(self.max_body_bytes >= 1024, "serve.max_body_bytes", self.max_body_bytes, "≥ 1024")
        for origin in self.cors_origins:
            require(
                ORIGIN.fullmatch(origin) is not None,
                "serve.cors_origins",
                origin,
                '"*" or a scheme and host, as https://HOST',
            )
        if self.api_key_env is None and not is_loopback(self.host):
            raise InputError(
                f"serve.host={self.host} is reachable from other machines and needs API keys: put them into an "
                "environment variable and name it by serve.api_key_env=NAME, or listen on serve.host=127.0.0.1"
            )

    def key_hashes(self) -> tuple[str, ...]:
        """Hashes of the keys that clients must send; empty without serve.api_key_env. Raises InputError when that
        variable is empty or has a hash that is none."""
        return read_key_hashes(self.api_key_env)

    def check_port(self) -> None:
        """Raise InputError when the port is busy. Cheap: call it before hours of work."""
        bound(self.host, self.port).close()

    @property
    def url(self) -> str:
        """Base URL for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; names other than localhost count as reachable by others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key_hashes(variable: str | None, *, key: str = "serve.api_key_env") -> tuple[str, ...]:
    """Hashes of the API keys that an environment variable holds, comma-separated; empty for None. `key`: of the
    config, for the error's text. Raises InputError when the variable is empty or has a hash that is none."""
    if variable is None:
        return ()
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise InputError(
            f"{key}={variable}: this environment variable holds no key; set it, e.g. to a long random word"
        )
    return tuple(_hash(text, f"{key}={variable}: entry {number}") for number, text in enumerate(keys, 1))


def _hash(text: str, place: str) -> str:
    """The hash of a key, or the one that it is given by."""
    if not text.startswith(HASHED):
        return key_hash(text)
    found = text.removeprefix(HASHED).lower()
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise InputError(
            f"{place} begins with {HASHED}, which 64 hexadecimal digits must follow; it has {len(found)} characters "
            "there"
        )
    return found


def bound(host: str, port: int, *, key: str = "serve.port") -> socket.socket:
    """A socket that holds an address and doesn't listen yet. `key`: of the config, for the error's text. Raises
    InputError when the port is busy."""
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on ({error.strerror})"
        raise InputError(f"{key}={port} {reason} on {host}; choose another by {key}=…") from error
    return holder
