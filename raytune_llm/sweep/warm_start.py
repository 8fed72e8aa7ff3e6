"""Points that a sweep tries early because they won earlier ones: of the same base, method, metric and kind of adapter,
whatever their records. Left out: carrying their results over, which other records would make wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.methods.base import Method
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.card import Version
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep.axes import ABSENT, Point, identity
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.tables import cell, short_key
from raytune_llm.training.config import TrialConfig

MOST = 3
"""Points: more would delay a sweep that differs from all before it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What sweeps have in common whose winners may suit each other."""

    base_revision: str
    method: str
    metric: str
    adapter: str

    @classmethod
    def of(cls, config: TrialConfig) -> Task:
        """That of a sweep that is to run."""
        return cls(
            base_revision=config.model.facts.revision_hash,
            method=name_of(config.method, Method),
            metric=config.method.metric,
            adapter=name_of(config.adapter, Adapter),
        )

    @classmethod
    def of_version(cls, version: Version) -> Task:
        """That of the sweep which a version has won."""
        card = version.card
        return cls(
            base_revision=card.base_revision,
            method=card.method,
            metric=str(nested(card.config, "method.metric")),
            adapter=str(nested(card.config, "adapter.type")),
        )


@dataclass(frozen=True, kw_only=True)
class WarmPoint:
    """A point with the version that it comes from."""

    point: Point
    version: str
    """Registry reference."""


def warm_points(config: TrialConfig, plan: Plan) -> list[WarmPoint]:
    """The points to try, at most 3: from sweeps of the same name first, of those the newest. Reads all cards of the
    registry."""
    versions = winners(published(Registry(config.registry_dir)), config)
    return distinct(versions, plan)


def text(found: Sequence[WarmPoint]) -> str:
    """One line for the terminal."""
    points = [
        ", ".join(f"{short_key(key)} {cell(value)}" for key, value in one.point.items()) + f" from {one.version}"
        for one in found
    ]
    return f"warm start: {'; '.join(points)}"


def published(registry: Registry) -> Iterator[Version]:
    """All versions that can be read."""
    for name in registry.names():
        try:
            yield from registry.versions(name)
        except InputError:
            continue  # a name without a version, or with a damaged one, is no reason not to sweep


def winners(versions: Iterable[Version], config: TrialConfig) -> list[Version]:
    """Winners of other sweeps of the same task, the most promising first."""
    task, own_run = Task.of(config), (config.name, config.run)
    found = [
        version
        for version in versions
        if "sweep" in version.card.config
        and Task.of_version(version) == task
        and tuple(nested(version.card.config, key) for key in ("name", "run")) != own_run
    ]
    return sorted(found, key=lambda version: (version.name == config.name, version.card.created), reverse=True)


def distinct(versions: Iterable[Version], plan: Plan) -> list[WarmPoint]:
    """The versions' points, each once and none that the user asks for."""
    seen = {identity(point) for point in plan.first}
    found: list[WarmPoint] = []
    for version in versions:
        point = point_of(version.card.config, plan)
        if point is not None and identity(point) not in seen and len(found) < MOST:
            seen.add(identity(point))
            found.append(WarmPoint(point=point, version=version.reference))
    return found


def point_of(values: Mapping[str, Any], plan: Plan) -> Point | None:
    """The point of the space that is nearest to a job's values (nested keys); None where the job lacks an axis, or an
    axis has nothing like its value."""
    point: Point = {}
    for key in plan.points.order:
        if plan.axes[key].is_met(point):
            point[key] = plan.axes[key].nearest(nested(values, key))
            if point[key] is ABSENT:
                return None
    return {key: point[key] for key in plan.axes if key in point}


def nested(values: Any, key: str) -> Any:
    """The value of a dotted key in mappings within mappings; ABSENT where there is none."""
    for name in key.split("."):
        values = values.get(name, ABSENT) if isinstance(values, Mapping) else ABSENT
    return values
