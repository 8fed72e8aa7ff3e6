"""What jobs take of the cluster, in device seconds, and what their owners have left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from raytune_llm.service.records import Status

STORE_SECONDS = 10.0
"""Device time that may be lost with the service: a status is stored that often at least."""


def counted(status: Status, *, until: float, devices: float, num_running: int) -> Status:
    """A running job's status with its share of the devices since it was last counted.

    Args:
        until: Unix time; one before the last count adds nothing.
        devices: of the cluster.
        num_running: jobs that share them, this one too; ≥ 1.
    """
    if status.counted is None:
        return replace(status, counted=until)
    seconds = max(0.0, until - status.counted) * devices / num_running
    return replace(status, device_seconds=status.device_seconds + seconds, counted=max(until, status.counted))


def device_hours(statuses: Iterable[Status]) -> float:
    """What jobs have taken in all, hours."""
    return sum(status.device_seconds for status in statuses) / 3600
