"""A Ray session of this machine's own, for as long as a job lasts.

Who reaches Ray's ports and has its token runs commands as the user. So a session listens on loopback alone, and takes
no call without a token: the one that the user has configured for Ray (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
~/.ray/auth_token), else one of its own, which only its processes know, by their environment.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from typing import Any

from raytune_llm.compat import has_ray_token, loopback_node, needs_ray_token, refresh_ray_authentication
from raytune_llm.errors import InputError

MODE, TOKEN, FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_BYTES = 32
LOOPBACK = "127.0.0.1"

_is_own = False
"""Whether this process started its session."""
_set_here: list[str] = []
"""Names of the variables that `authenticate` set."""


def start(*, dashboard: bool, **options: Any) -> None:
    """Start a session that `end` ends; options: of ray.init. Raises InputError when the user's token can't be read."""
    global _is_own
    begin(dashboard=dashboard, **options)
    _is_own = True


def begin(*, dashboard: bool, **options: Any) -> None:
    """`start` for a caller who ends the session by ray.shutdown(). Raises InputError likewise.

    The session is on a port known beforehand, whose address its workers find in their environment. Ray Train's helpers
    look for a session of this machine otherwise, and fail where there are two. Its workers inherit this process's
    environment: a runtime environment would start each of them twice.
    """
    import ray

    authenticate()
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    addresses = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{LOOPBACK}:{port}"}
    os.environ |= addresses
    try:
        with loopback_node():
            ray.init("local", logging_level=logging.WARNING, include_dashboard=dashboard, **options)
    finally:
        for name in addresses:
            del os.environ[name]


def authenticate() -> None:
    """Have Ray sessions that this process starts, here or in its children, ask for a token. Where RAY_AUTH_MODE says
    otherwise, prints a warning.

    Raises InputError when the user's token can't be read.
    """
    from ray.exceptions import AuthenticationError

    if MODE not in os.environ:
        _set(MODE, "token")
    try:
        has_token = has_ray_token()
    except AuthenticationError as error:
        raise InputError(
            f"{FILE}={os.environ.get(FILE)} names no file with a token; unset it, or have one made by "
            "`ray get-auth-token --generate`"
        ) from error
    if not has_token:
        _set(TOKEN, secrets.token_hex(TOKEN_BYTES))
    refresh_ray_authentication()
    if not needs_ray_token():
        print(
            f"! {MODE}={os.environ[MODE]}: all users of this machine, and all who reach the port of an endpoint's "
            f"replica, can run commands as you through Ray; unset {MODE} to have it ask for a token",
            flush=True,
        )


def end() -> bool:
    """End the session if `start` started it for this process; whether it did."""
    import ray

    global _is_own
    if not _is_own:
        return False
    _is_own = False
    ray.shutdown()
    forget_token()
    return True


def is_own() -> bool:
    """Whether `start` started this process's session."""
    return _is_own


def forget_token() -> None:
    """Unset what `authenticate` set, so that another cluster is joined with the user's token and mode."""
    if _set_here:
        for name in _set_here:
            os.environ.pop(name, None)
        _set_here.clear()
        refresh_ray_authentication()


def _set(name: str, value: str) -> None:
    os.environ[name] = value
    _set_here.append(name)
