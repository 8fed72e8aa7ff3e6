"""Which Ray cluster a service's jobs run on: the one it is given, its own head node, that of this machine, or a new one
of its own."""

from __future__ import annotations

import os
from pathlib import Path

from raytune_llm.compat import needs_ray_token, running_ray_address
from raytune_llm.errors import InputError
from raytune_llm.service import head
from raytune_llm.service.config import Service
from raytune_llm.service.own_runner import OwnRunner
from raytune_llm.service.runner import RayRunner, Runner
from raytune_llm.session import FILE, TOKEN

USERS_TOKEN = Path(".ray", "auth_token")
"""Below the user's home folder: where Ray looks last."""


def open_cluster(service: Service, home: str) -> tuple[Runner, head.Head | None]:
    """The runner of a service's jobs, and the head node that is the service's own. The caller holds
    local_state.only_service. Raises InputError where there is no cluster.

    An own head that still runs is used before another cluster of this machine, as its jobs are there. Where an address
    is given, it is ended, and its jobs resume there from their last checkpoints: none runs on both.
    """
    own = head.running(home)
    if service.ray_address is not None:
        runner = _reached(service.ray_address)
        if own is not None:
            print(f"! the service's own Ray head node is ended: its jobs resume on {service.ray_address}", flush=True)
            head.stop(home)
        return runner, None
    if own is None and running_ray_address() is not None:
        return _reached(_of_this_machine()), None

    def start() -> head.Head:
        return head.find_or_start(home, hidden=(service.api_key_env or "",))

    started = start()
    return OwnRunner(started, start), started


def _reached(address: str) -> RayRunner:
    runner = RayRunner(address, users_token())
    try:
        runner.seen("none")
    except ConnectionError as error:
        raise InputError(f"service.ray_address: {error}") from error
    return runner


def _of_this_machine() -> str:
    """The job server's address of the cluster that RAY_ADDRESS or `ray start` names."""
    from ray.job_submission import JobSubmissionClient

    try:
        return str(JobSubmissionClient().get_address())
    except (ConnectionError, RuntimeError) as error:
        raise InputError(
            f"this machine has a Ray cluster whose job server can't be reached: {error}; name another by "
            "service.ray_address=http://HOST:8265"
        ) from error


def users_token() -> str | None:
    """The token that the user has configured for Ray; None where Ray asks for none."""
    if not needs_ray_token():
        return None
    if token := os.environ.get(TOKEN):
        return token
    file = Path(os.environ.get(FILE) or Path.home() / USERS_TOKEN)
    return file.read_text().strip() if file.is_file() else None
