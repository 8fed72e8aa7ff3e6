"""What a replica does while it starts, as lines that Ray prints at the job that waits for it."""

from __future__ import annotations

import sys

import ray


def report(line: str) -> None:
    """Print a line, where this process is an actor. Ray Serve sends a replica's sys.stdout to a log file, and Ray sends
    what it printed before that to the job."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        print(line, file=sys.__stdout__, flush=True)
