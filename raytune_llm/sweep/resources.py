"""What each trial of a sweep with bases of their own reserves, and how many run at a time.

A trial of one worker reserves that worker's share through Ray Tune. A trial of several is the driver of a Ray Train
job, which places its workers itself: trials that were started without room for them would wait for each other, so only
as many run at a time as there is room for if all were the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.tune import PlacementGroupFactory

from raytune_llm import session
from raytune_llm.compat import autoscaler_report
from raytune_llm.errors import InputError
from raytune_llm.sweep.plan import Plan
from raytune_llm.training.config import Scaling, with_values

NUM_WORKERS = "scaling.num_workers"
CPUS = "scaling.cpus_per_worker"
GPUS = "scaling.gpus_per_worker"
DRIVER = {"memory": 1}
"""Of a trial with several workers, which take all CPUs that there are. A byte: Ray Tune takes no empty bundle."""


def scaling_at(point: Mapping[str, Any], own: Scaling) -> Scaling:
    """What the trial at a point of the space may use of the cluster; `own`: what its job says."""
    prefix = "scaling."
    return with_values(own, {key.removeprefix(prefix): value for key, value in point.items() if key.startswith(prefix)})


def resources(own: Scaling, point: Mapping[str, Any], *, use_gpu: bool) -> PlacementGroupFactory:
    """What Ray Tune reserves for the trial at a point of the space."""
    scaling = scaling_at(point, own)
    return PlacementGroupFactory([DRIVER if scaling.num_workers > 1 else scaling.worker_resources(use_gpu=use_gpu)])


def concurrency(own: Scaling, plan: Plan, *, use_gpu: bool) -> int | None:
    """Trials at a time; None = as many as Ray Tune finds room for. Raises InputError when the largest trial finds none
    in the whole cluster, and no autoscaler may enlarge it."""
    scalings = [scaling_at(point, own) for point in plan.combinations((NUM_WORKERS, CPUS, GPUS))]
    most = max(scaling.num_workers for scaling in scalings)
    shares = [scaling.worker_resources(use_gpu=use_gpu) for scaling in scalings]
    largest = {name: max(share[name] for share in shares) for name in shares[0]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = num_workers(nodes, largest)
    if room < most and (session.is_own() or autoscaler_report() is None):
        share = ", ".join(f"{amount:g} {name}" for name, amount in largest.items())
        raise InputError(
            f"{NUM_WORKERS}={most}: the cluster has room for {room} workers of {share} each; lower {NUM_WORKERS} or "
            f"{CPUS}"
        )
    return None if most == 1 else max(1, room // most)


def num_workers(nodes: Iterable[Mapping[str, float]], share: Mapping[str, float]) -> int:
    """Workers that nodes with these resources hold at a time, all of the same share."""
    return sum(int(min(node.get(name, 0) / amount for name, amount in share.items())) for node in nodes)
