"""How much a sweep may use. When any of it is used up, running trials report once more and the best so far wins."""

from __future__ import annotations

from dataclasses import dataclass, fields

from raytune_llm.errors import require


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Hard bounds of a sweep, over all of its restarts; null = none."""

    hours: float | None
    """Of wall time from the sweep's start to its end, comparing and publishing included; time in which it was paused or
    not running isn't counted. > 0."""
    gpu_hours: float | None
    """GPUs that the sweep holds, times the hours that it holds them; > 0."""
    usd: float | None
    """Of scaling.usd_per_hour; > 0."""
    tokens: float | None
    """Tokens that trials are trained on, all together; > 0."""
    trials: int | None
    """Trials that are started; ≥ 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value is None or value > 0, f"sweep.budget.{field.name}", value, "> 0 or null")
