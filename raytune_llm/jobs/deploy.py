"""An endpoint on Ray Serve for registered versions: started, checked, held up, taken down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raytune_llm import cluster
from raytune_llm.jobs import stopping, summary
from raytune_llm.jobs.clock import progress_lines
from raytune_llm.jobs.schema import ServeJob, SweepJob

if TYPE_CHECKING:
    from raytune_llm.serving.catalog import Endpoint


def deploy(job: ServeJob | SweepJob, references: Sequence[str]) -> Endpoint:
    """Start the endpoint, check that its answers match PEFT's, and print how to use it."""
    from raytune_llm.serving.deploy import endpoint as deployment
    from raytune_llm.serving.verify.endpoint import check_endpoint
    from raytune_llm.serving.verify.parity import probes

    cluster.connect()
    stopping.interrupt_at_sigterm()
    with progress_lines("the endpoint is starting"):
        endpoint = deployment.start(job.serve, job.registry_dir, list(references))
    try:
        print("checking the endpoint's answers over HTTP …", flush=True)
        texts = [probe for version in endpoint.catalog.versions for probe in probes(version)]
        results = check_endpoint(endpoint, job.registry_dir, texts)
    except BaseException:
        deployment.stop()
        raise
    for result in results:
        print(result)
    print(summary.of_endpoint(endpoint), flush=True)
    return endpoint


def hold(endpoint: Endpoint, drain_seconds: float) -> int:
    """Stay until interrupted by Ctrl-C or SIGTERM; then let open answers end. A second one ends the process at once."""
    from raytune_llm.serving.deploy import endpoint as deployment

    print("Ctrl-C stops it.", flush=True)
    try:
        deployment.watch(endpoint)
    except KeyboardInterrupt:
        stopping.end_at_next_signal()
        print(
            f"stopping: new requests are refused, open answers have up to {drain_seconds:g} s to end; "
            "Ctrl-C again ends at once",
            flush=True,
        )
        take_down()
        print("stopped", flush=True)
    return 0


def take_down() -> None:
    """Let requests in flight end, then end Ray Serve: with its session where that is this process's own, because
    Ray prints two warnings into a session that outlives Ray Serve's controller."""
    from raytune_llm.serving.deploy import endpoint as deployment

    deployment.drain()
    if not cluster.end_own_session():
        deployment.stop()
