"""Ray Serve where the cluster counts GPUs, else in the service's own process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.service.answers.base import Answering, Cluster
from raytune_llm.service.answers.in_process import InProcess
from raytune_llm.service.answers.ray_serve import RayServe

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve


@dataclass(frozen=True, kw_only=True)
class Auto(RayServe):
    """Ray Serve where the cluster counts GPUs, else engines in the service's own process."""

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base], cluster: Cluster) -> Answering:
        if cluster.has_gpu():
            return super().start(serve, registry_dir, bases, cluster)
        return InProcess().start(serve, registry_dir, bases, cluster)
