"""Applications of Ray Serve for the service, started and ended by short processes: one that is connected to a Ray
cluster ends when the cluster does, and the service must not.

    python -m raytune_llm.service.serve_apps < ORDER

An order is JSON, as are the lines that are written: {"note": …} while it is on its way, at last {"done": …} or
{"error": …}.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from raytune_llm import cluster
from raytune_llm.compat import loopback_node, ray_serve_port, running_ray_address
from raytune_llm.errors import InputError

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.3
UNSCHEDULED = "taken more than"
"""In Ray Serve's words for a replica that waits for resources."""
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")

Note = Callable[[str], None]


def main() -> None:
    """Follow the order on stdin."""
    order = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # what Ray prints is no answer

    def write(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    is_near = os.environ.get("RAY_ADDRESS", "").startswith(LOOPBACK)  # a session that listens on nothing else
    try:
        with loopback_node() if is_near else contextlib.nullcontext():
            write({"done": ORDERS[order.pop("do")](lambda text: write({"note": text}), **order)})
    except InputError as error:
        write({"error": str(error)})


def deploy(
    note: Note,
    *,
    app: str,
    replaces: str,
    route: str,
    port: int | None,
    serve: dict[str, Any],
    registry_dir: str,
    base: dict[str, Any],
    name: str,
    key_hash: str,
) -> str:
    """Have an application run, which may do so already, in place of others whose names begin with `replaces`; returns
    its address. port: of Ray Serve where it doesn't run yet; None = a free one."""
    from ray import serve as ray_serve
    from ray.serve import RunTarget

    if not _join():
        raise InputError("no Ray cluster runs on this machine; start one, or set service/answers=in_process")
    logging.getLogger("ray.serve").setLevel("WARNING")
    config = _serve(serve)
    _start(config, port)
    running = ray_serve.status().applications
    for other in running:
        if other.startswith(replaces) and other != app:
            ray_serve.delete(other, _blocking=False)
    if app not in running or running[app].status in FAILED:
        target = _application(config, registry_dir, base, name, key_hash)
        ray_serve.run_many([RunTarget(target, app, route)], wait_for_applications_running=False)
    _wait(app, note)
    return f"http://{LOOPBACK}:{ray_serve_port()}{route}"


def keep(note: Note, *, prefix: str, apps: list[str]) -> list[str]:
    """End the applications whose names begin with a prefix, but for these; returns those of them that run."""
    if not _join():
        return []
    from ray import serve as ray_serve

    running = [app for app in ray_serve.status().applications if app.startswith(prefix)]
    end(note, apps=[app for app in running if app not in apps])
    if running and not ray_serve.status().applications:
        ray_serve.shutdown()
    return [app for app in running if app in apps]


def end(note: Note, *, apps: list[str]) -> None:
    """End these, as far as they run; their open answers end first."""
    if not _join():
        return
    from ray import serve as ray_serve

    for app in {*apps} & {*ray_serve.status().applications}:
        ray_serve.delete(app, _blocking=False)
    while {*apps} & {*ray_serve.status().applications}:
        time.sleep(POLL_SECONDS)


ORDERS: dict[str, Callable[..., Any]] = {"deploy": deploy, "keep": keep, "end": end}


def _join() -> bool:
    """Join the cluster of this process's environment, or of this machine; none is started. Whether there is one.
    Raises InputError."""
    if running_ray_address() is None:
        return False
    cluster.connect()
    return True


def _serve(fields: dict[str, Any]) -> Any:
    from raytune_llm.serving.deploy.config import Serve
    from raytune_llm.stores.components import build

    return build(Serve, fields, key="serve.")


def _start(serve: Any, port: int | None) -> None:
    """Start Ray Serve on loopback, where it doesn't run yet."""
    from ray import serve as ray_serve

    from raytune_llm.serving.deploy.application import QUIET, http_options

    if ray_serve.status().proxies:
        return
    if port is None:
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
    options = {**http_options(serve), "host": LOOPBACK, "port": port}
    ray_serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)


def _application(serve: Any, registry_dir: str, base: dict[str, Any], name: str, key_hash: str) -> Any:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.catalog import base_alone
    from raytune_llm.serving.deploy.application import make_application

    catalog = serve.engine.named(base_alone(Base.from_loading(base), name))
    return make_application(serve, registry_dir, [], catalog, (key_hash,), is_behind_service=True)


def _wait(app: str, note: Note) -> None:
    """Raises InputError when it can't run."""
    from ray import serve as ray_serve

    is_noted = False
    while (status := ray_serve.status().applications[app]).status != "RUNNING":
        if status.status in FAILED:
            raise InputError(f"{app} can't run: {status.message}")
        waits = any(UNSCHEDULED in deployment.message for deployment in status.deployments.values())
        if waits and not is_noted:
            note("waits for a free GPU or CPU of the cluster")
            is_noted = True
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
