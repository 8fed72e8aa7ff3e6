"""The tuning service as a command: the bases it offers, its Ray cluster, its web server."""

from __future__ import annotations

from raytune_llm.jobs.schema import ServiceJob


def run_service(job: ServiceJob) -> int:
    """Serve until interrupted. Raises InputError."""
    raise NotImplementedError
