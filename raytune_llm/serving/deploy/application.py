"""The endpoint as a Ray Serve application: replicas and, where there may be several, a coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raytune_llm import cluster
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.deploy.config import Serve

if TYPE_CHECKING:
    from raytune_llm.serving.deploy.replica import Plan

APPLICATION = "raytune_llm"
DEPLOYMENT = "endpoint"
COORDINATOR = "coordinator"
SPARE_REQUESTS = 2000
"""Requests in addition to open answers that Ray Serve delivers to a replica: health, metrics, what will be refused, and
bodies that are being received. More than one proxy has connections (connections.py), so that none of them ever waits
behind answers: the replica itself bounds those (api/admission.py)."""
MAX_QUEUED_REQUESTS = 200
"""Requests that wait in a proxy while no replica is there; Ray Serve answers further ones 503."""
PROXY_SLACK_SECONDS = 15.0
STOP_POLL_SECONDS = 0.5
"""How often a replica that is being stopped looks whether its answers have ended."""
LOOK_BACK_SECONDS = 30.0
QUIET: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}


def make_application(
    serve: Serve,
    registry_dir: str,
    references: Sequence[str],
    catalog: Catalog,
    key_hashes: tuple[str, ...],
    *,
    has_gpu: bool | None = None,
    is_behind_service: bool = False,
) -> Any:
    """The Serve application.

    references: what `catalog` was read from, which replicas follow; has_gpu: whether its cluster has a GPU, None looks
    it up in the connected cluster, whose autoscaler may have to start one; is_behind_service: as Plan.
    """
    plan = make_plan(serve, registry_dir, catalog, key_hashes, is_behind_service=is_behind_service)
    has_gpu = _has_gpu(serve) if has_gpu is None else has_gpu
    is_guarded = bool(key_hashes) or serve.max_on_demand > 0 or bool(plan.key_limits.limited)
    return serve.engine.application(
        lambda: _deployments(serve, plan, named_versions(serve, references, catalog), has_gpu=has_gpu),
        catalog,
        scaling(serve),
        is_guarded=is_guarded,
    )


def _has_gpu(serve: Serve) -> bool:
    """Whether replicas that want a GPU find one; where they want none, the cluster isn't asked."""
    wanted = serve.engine.resources(cluster_has_gpu=True)
    if not wanted.get("num_gpus"):
        return False
    bundle = {"CPU": wanted.get("num_cpus", 1), "GPU": min(1, wanted["num_gpus"])}
    return cluster.uses_gpu(None, key="serve.engine.use_gpu", bundles=[bundle])


def make_plan(
    serve: Serve,
    registry_dir: str,
    catalog: Catalog,
    key_hashes: tuple[str, ...],
    *,
    is_behind_service: bool = False,
) -> Plan:
    """What a replica needs of an endpoint's config."""
    from raytune_llm.serving.api.lengths import Limits
    from raytune_llm.serving.api.rate_limit import KeyLimits
    from raytune_llm.serving.deploy.replica import Plan

    facts = catalog.base.facts
    return Plan(
        catalog=catalog,
        registry_dir=registry_dir,
        engine=serve.engine,
        limits=Limits(
            max_tokens=serve.max_tokens,
            context_tokens=facts.context_tokens,
            shares_context=not facts.is_encoder_decoder,
            request_timeout_seconds=serve.request_timeout_seconds,
            max_body_bytes=serve.max_body_bytes,
            body_timeout_seconds=serve.body_timeout_seconds,
            max_open_requests=serve.max_concurrent_requests + serve.max_waiting_requests,
        ),
        max_running=serve.max_concurrent_requests,
        key_hashes=key_hashes,
        key_limits=KeyLimits(serve.requests_per_minute, serve.tokens_per_minute),
        max_on_demand=serve.max_on_demand,
        follow_seconds=serve.follow_seconds,
        discover=serve.discover,
        cors_origins=serve.cors_origins,
        is_behind_service=is_behind_service,
    )


def named_versions(serve: Serve, references: Sequence[str], catalog: Catalog) -> list[str]:
    """What replicas are given: the references, or where they aren't followed the versions that they name now."""
    if serve.follow_seconds:
        return list(dict.fromkeys(references))
    return [version.reference for version in catalog.versions]


def _deployments(serve: Serve, plan: Plan, versions: list[str], *, has_gpu: bool) -> Any:
    """The replicas, bound to a coordinator where there may be several."""
    from ray import serve as ray_serve

    from raytune_llm.serving.deploy.coordinator import Coordinator
    from raytune_llm.serving.deploy.replica import Replica

    replicas = ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name=DEPLOYMENT,
        max_ongoing_requests=serve.max_concurrent_requests + serve.max_waiting_requests + SPARE_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=serve.drain_seconds,
        graceful_shutdown_wait_loop_s=STOP_POLL_SECONDS,
        user_config={"versions": versions},
        ray_actor_options=serve.engine.resources(cluster_has_gpu=has_gpu),
        **scaling(serve),
    )
    if serve.max_replicas == 1:
        return replicas.bind(plan)
    coordinator = ray_serve.deployment(
        Coordinator,
        name=COORDINATOR,
        num_replicas=1,
        max_ongoing_requests=100,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": 0},
    )
    return replicas.bind(plan, coordinator.bind(plan.key_limits))


def http_options(serve: Serve) -> dict[str, Any]:
    """Ray Serve's options of its HTTP proxies. Their time limit is reached only where a replica, which has its own, is
    stuck."""
    return {
        "host": serve.host,
        "port": serve.port,
        "request_timeout_s": serve.request_timeout_seconds + PROXY_SLACK_SECONDS,
    }


def scaling(serve: Serve) -> dict[str, Any]:
    """Ray Serve's fields for the number of replicas."""
    if serve.max_replicas == serve.num_replicas:
        return {"num_replicas": serve.num_replicas}
    shortest = min(serve.upscale_delay_seconds, serve.downscale_delay_seconds)
    return {
        "autoscaling_config": {
            "min_replicas": serve.num_replicas,
            "max_replicas": serve.max_replicas,
            "target_ongoing_requests": serve.target_open_answers,
            "upscale_delay_s": serve.upscale_delay_seconds,
            "downscale_delay_s": serve.downscale_delay_seconds,
            # the load is averaged over this time; Ray Serve's 30 s would make shorter delays meaningless
            "look_back_period_s": min(LOOK_BACK_SECONDS, shortest),
            "metrics_interval_s": min(LOOK_BACK_SECONDS, shortest) / 3,
        }
    }
