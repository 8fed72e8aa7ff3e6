"""Ray Serve on the cluster: an application a base, reached through a proxy in the service.

An application begins at the first request for its base and ends when none has come for a while, so that jobs get its
GPU. It survives a service that is killed; the next one finds it by its name, which has a hash of all that it was
started with. Its HTTP address is on loopback and takes a key that only this user can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from raytune_llm import __version__
from raytune_llm.errors import InputError, require
from raytune_llm.service.answers.base import Answering, Cluster, check_serve
from raytune_llm.service.first_use import FirstUse
from raytune_llm.service.reverse_proxy import ReverseProxy
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.stores.components import describe

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve

logger = logging.getLogger(__name__)

PREFIX = "raytune_llm-service"
PROXY_SLACK_SECONDS = 20.0
"""More than Ray Serve's own, whose error is the better one."""
END_SLACK_SECONDS = 60.0
WATCH_SECONDS = 5.0
COMMAND = (sys.executable, "-m", "raytune_llm.service.serve_apps")


@dataclass(frozen=True, kw_only=True)
class RayServe:
    """One application of Ray Serve a base, on the cluster of this machine."""

    port: int | None
    """Loopback port of Ray Serve, where it doesn't run yet; null = a free one."""
    idle_seconds: float | None
    """An application that nobody has asked for so long is ended, and starts again at the next request; > 0, or null to
    keep it."""

    def __post_init__(self) -> None:
        port, idle = self.port, self.idle_seconds
        require(port is None or 1 <= port <= 65535, "service.answers.port", port, "1 to 65535 or null")
        require(idle is None or idle > 0, "service.answers.idle_seconds", idle, "> 0 or null")

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base], cluster: Cluster) -> Answering:
        check_serve(serve, bases)
        return Applications(self, serve, registry_dir, bases, cluster.environment)


class Applications:
    """The applications of all bases."""

    def __init__(
        self,
        config: RayServe,
        serve: Serve,
        registry_dir: str,
        bases: Mapping[str, Base],
        environment: Mapping[str, str],
    ) -> None:
        """environment: of the processes that join the cluster."""
        self._config, self._serve, self._environment = config, serve, environment
        self._tag = hashlib.sha256(registry_dir.encode()).hexdigest()[:8]
        self._prefix = f"{PREFIX}-{self._tag}-"
        self._key, has_run = _own_key(self._tag)
        self._orders = {name: self._order(name, base, registry_dir) for name, base in bases.items()}
        self._apps = {name: self._first_use(name) for name in bases}
        self._used: dict[str, float] = {}
        """When an application that runs was asked last, by its name."""
        self._proxies: dict[str, ReverseProxy] = {}
        self._closing = threading.Event()
        self._has_begun = has_run
        if has_run:
            names = [order["app"] for order in self._orders.values()]
            kept = follow({"do": "keep", "prefix": self._prefix, "apps": names}, environment)
            self._used = dict.fromkeys(kept, time.monotonic())
        self._watcher = threading.Thread(target=self._watch, name="idle applications", daemon=True)
        self._watcher.start()

    def app_of(self, base: str) -> ASGIApp:
        return self._apps[base]

    def close(self) -> None:
        self._closing.set()
        self._watcher.join()
        if self._has_begun:
            self._tell({"do": "keep", "prefix": self._prefix, "apps": []})

    def _order(self, name: str, base: Base, registry_dir: str) -> dict[str, Any]:
        """What starts a base's application."""
        # without what isn't the application's
        serve = replace(self._serve, api_key_env=None, host="127.0.0.1", port=1, config_file=None)
        what = {
            "serve": describe(serve),
            "registry_dir": registry_dir,
            "base": base.loading(),
            "name": name,
            "key_hash": key_hash(self._key),
        }
        digest = hashlib.sha256(json.dumps([what, __version__], sort_keys=True).encode()).hexdigest()[:8]
        begin = f"{self._prefix}{name}-"
        place = {"app": begin + digest, "replaces": begin, "route": f"/{self._tag}/{name}", "port": self._config.port}
        return {"do": "deploy", **place, **what}

    def _first_use(self, name: str) -> FirstUse:
        async def make() -> ASGIApp:
            order, self._has_begun = self._orders[name], True
            url = await _followed(order, self._environment, first)
            proxy = ReverseProxy(
                url,
                self._key,
                read_seconds=self._serve.request_timeout_seconds + PROXY_SLACK_SECONDS,
                on_lost=first.forget,
            )
            self._proxies[order["app"]] = proxy
            self._used[order["app"]] = time.monotonic()
            return proxy

        first = FirstUse(
            name,
            make,
            wait_seconds=self._serve.request_timeout_seconds,
            most_waiting=self._serve.max_concurrent_requests + self._serve.max_waiting_requests,
        )
        return first

    def _watch(self) -> None:
        """End applications that nobody asks."""
        idle = self._config.idle_seconds
        while idle is not None and not self._closing.wait(min(WATCH_SECONDS, idle)):
            now = time.monotonic()
            ended = [app for app in list(self._used) if not self._is_open(app) and now - self._asked(app) > idle]
            if not ended:
                continue
            for name, order in self._orders.items():
                if order["app"] in ended:
                    self._apps[name].forget()
            self._tell({"do": "end", "apps": ended})
            for app in ended:
                self._used.pop(app)

    def _is_open(self, app: str) -> bool:
        return app in self._proxies and self._proxies[app].num_open > 0

    def _asked(self, app: str) -> float:
        return max(self._used[app], self._proxies[app].last_used if app in self._proxies else 0.0)

    def _tell(self, order: dict[str, Any]) -> None:
        """Follow an order that ends applications."""
        try:
            follow(order, self._environment, timeout_seconds=self._serve.drain_seconds + END_SLACK_SECONDS)
        except (InputError, RuntimeError, subprocess.TimeoutExpired) as error:
            logger.error("applications of Ray Serve couldn't be ended: %s", error)


def follow(order: dict[str, Any], environment: Mapping[str, str], *, timeout_seconds: float | None = None) -> Any:
    """What an order to serve_apps.py comes to. Raises InputError, RuntimeError, subprocess.TimeoutExpired."""
    done = subprocess.run(
        COMMAND,
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        env=dict(environment),
        timeout=timeout_seconds,
        check=False,
    )
    return _result([found for line in done.stdout.splitlines() if (found := _parsed(line)) is not None])


async def _followed(order: dict[str, Any], environment: Mapping[str, str], first: FirstUse) -> str:
    """The address of an application that is started. Raises InputError, RuntimeError."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment), limit=1 << 20
    )
    assert process.stdin is not None and process.stdout is not None
    lines = []
    try:
        process.stdin.write(json.dumps(order).encode())
        process.stdin.write_eof()
        async for line in process.stdout:
            if (found := _parsed(line)) is not None:
                lines.append(found)
                first.note = found.get("note", first.note)
        await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return str(_result(lines))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _result(lines: list[dict[str, Any]]) -> Any:
    last = lines[-1] if lines else {}
    if "error" in last:
        raise InputError(last["error"])
    if "done" not in last:
        raise RuntimeError("the process that talks to Ray Serve ended without an answer; its output says why")
    return last["done"]


def _own_key(tag: str) -> tuple[str, bool]:
    """The key between service and applications, of this user on this machine, and whether there was one before."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raytune_llm" / "service_keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / tag
    with contextlib.suppress(FileNotFoundError):
        return file.read_text(), True
    key = secrets.token_urlsafe(32)
    partial = folder / f".{tag}-{os.getpid()}"
    partial.touch(mode=0o600)
    partial.write_text(key)
    partial.rename(file)
    return key, False
