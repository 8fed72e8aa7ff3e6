"""Starting and stopping the endpoint on a Ray cluster.

Ray Serve routes, scales, replaces failed replicas and keeps the endpoint when the job ends (on a cluster that outlives
it). serve_yaml.py writes the same endpoint as a file for `serve deploy`.
"""

from __future__ import annotations

import logging
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from raytune_llm.errors import InputError
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.catalog import Endpoint, read_catalog
from raytune_llm.serving.deploy.application import APPLICATION, QUIET, http_options, make_application
from raytune_llm.serving.deploy.config import Serve
from raytune_llm.stores.registry import Registry

HEALTHY_WITHIN_SECONDS = 60.0
WATCH_EVERY_SECONDS = 2.0
DRAIN_POLL_SECONDS = 0.2


def start(serve: Serve, registry_dir: str, references: Sequence[str]) -> Endpoint:
    """Serve these registry references and their base in the present Ray session; returns when the endpoint is healthy.

    Raises InputError for a busy port, missing API keys, references of different bases, versions that can't be loaded,
    a machine so busy that Ray Serve's HTTP proxy isn't ready in time.
    """
    from ray import serve as ray_serve

    hashes = serve.key_hashes()
    serve.check_port()
    catalog = serve.engine.named(read_catalog(Registry(registry_dir), references))
    _require_no_other_endpoint()
    logging.getLogger("ray.serve").setLevel(QUIET["log_level"])
    try:
        _start_ray_serve(serve)
        # the job's own key for the parity check; of the clients' keys it may have only hashes
        own_key = secrets.token_urlsafe(32) if hashes else None
        all_hashes = (*hashes, key_hash(own_key)) if own_key else ()
        application = make_application(serve, registry_dir, references, catalog, all_hashes)
        handle = ray_serve.run(application, name=APPLICATION, route_prefix="/")
        refused = serve.engine.refused(handle, timeout_seconds=HEALTHY_WITHIN_SECONDS)
        if refused:
            raise InputError("; ".join(refused.values()))
        endpoint = Endpoint(url=serve.url, catalog=catalog, api_key=own_key)
        _wait_until_healthy(endpoint)
    except BaseException:
        stop()
        raise
    return endpoint


def watch(endpoint: Endpoint) -> None:
    """Return when the endpoint has been removed; for jobs that serve until they are interrupted.

    Raises RuntimeError when its deployment failed.
    """
    from ray import serve as ray_serve

    while APPLICATION in (applications := ray_serve.status().applications):
        if applications[APPLICATION].status == "DEPLOY_FAILED":
            raise RuntimeError(f"{endpoint.url} was lost: {applications[APPLICATION].message}")
        time.sleep(WATCH_EVERY_SECONDS)


def drain() -> None:
    """Remove the endpoint: new requests are refused; returns when the open ones have ended and the replicas are gone.
    Ray Serve ends a replica whose requests are open after serve.drain_seconds; no other bound is set here."""
    from ray import serve as ray_serve

    if APPLICATION in ray_serve.status().applications:
        ray_serve.delete(APPLICATION, _blocking=False)  # which would wait 60 s at most
    while APPLICATION in ray_serve.status().applications:
        time.sleep(DRAIN_POLL_SECONDS)


def stop() -> None:
    """Remove the endpoint, then shut Ray Serve down."""
    from ray import serve as ray_serve

    drain()  # while the proxies still deliver the answers
    ray_serve.shutdown()


def _start_ray_serve(serve: Serve) -> None:
    from ray import serve as ray_serve

    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=http_options(serve), logging_config=QUIET)
    except TimeoutError as error:
        raise InputError(
            f"Ray Serve's HTTP proxy was not ready in time ({error}): this machine is too busy; try again when fewer "
            "processes run on it"
        ) from error


def _require_no_other_endpoint() -> None:
    from ray import serve as ray_serve

    status = ray_serve.status()
    if status.proxies or status.applications:
        raise InputError(
            f"this Ray cluster runs Ray Serve already (applications: {', '.join(status.applications) or 'none'}), "
            "whose address can't be changed while it runs; stop it with `serve shutdown`, or use another cluster"
        )


def _wait_until_healthy(endpoint: Endpoint) -> None:
    """Raises RuntimeError when /healthz doesn't answer in time."""
    deadline = time.monotonic() + HEALTHY_WITHIN_SECONDS
    address = endpoint.url.removesuffix("/v1") + "/healthz"
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{address} gave no answer within {HEALTHY_WITHIN_SECONDS:.0f} s of starting: {error}"
                ) from error
            time.sleep(0.1)
