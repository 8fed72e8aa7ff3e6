"""An endpoint on Ray Serve for registered versions: started, checked, held up, taken down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raytune_llm import cluster, session
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import ServeJob, SweepJob

if TYPE_CHECKING:
    from raytune_llm.serving.catalog import Endpoint


def deploy(job: ServeJob | SweepJob, references: Sequence[str]) -> Endpoint:
    """Start the endpoint, check that its answers match PEFT's, and print how to use it."""
    from raytune_llm.serving.deploy import endpoint as deployment
    from raytune_llm.serving.verify.endpoint import check_endpoint
    from raytune_llm.serving.verify.parity import probes

    cluster.connect()
    endpoint = deployment.start(job.serve, job.registry_dir, list(references))
    try:
        texts = [probe for version in endpoint.catalog.versions for probe in probes(version)]
        results = check_endpoint(endpoint, job.registry_dir, texts)
    except BaseException:
        deployment.stop()
        raise
    for result in results:
        print(result)
    print(summary.of_endpoint(endpoint), flush=True)
    return endpoint


def hold(endpoint: Endpoint) -> int:
    """Stay until interrupted; then let requests in flight end."""
    from raytune_llm.serving.deploy import endpoint as deployment

    print("Ctrl-C stops it.", flush=True)
    try:
        deployment.watch(endpoint)
    except KeyboardInterrupt:
        take_down()
    return 0


def take_down() -> None:
    """Let requests in flight end, then end Ray Serve: with its session where that is this process's own, because
    Ray prints two warnings into a session that outlives Ray Serve's controller."""
    from raytune_llm.serving.deploy import endpoint as deployment

    deployment.drain()
    if not session.end():
        deployment.stop()
