"""What a sweep has used of its budget, over all of its restarts, kept in its run as control/spent.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raytune_llm.errors import InputError
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.budget import Budget

FILE = "spent.json"
SAVE_SECONDS = 5.0
"""How much of it a killed driver may leave uncounted."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a second, a step and the sweep's end cost."""

    num_gpus: float
    """That the sweep holds while trials run."""
    num_nodes: int
    """Of the cluster."""
    usd_per_hour: float | None
    """Of a GPU, or of a node where the sweep holds no GPU."""
    tokens_per_example: float
    reserve_seconds: float
    """What comparing and publishing the winner is expected to take."""

    def usd(self, seconds: float) -> float:
        """The price of so many seconds; 0 where no price is known."""
        return (self.usd_per_hour or 0.0) * (self.num_gpus or self.num_nodes) * seconds / 3600


@dataclass
class Spending:
    """The amounts used so far."""

    run_dir: str
    budget: Budget
    prices: Prices
    seconds: float = 0.0
    """Of wall time in which the sweep ran."""
    gpu_seconds: float = 0.0
    steps: dict[str, int] = field(default_factory=dict)
    """The step of the last report of each trial."""
    batch_sizes: dict[str, int] = field(default_factory=dict)
    _counted_to: float = 0.0
    _saved_at: float = 0.0

    def start(self, now: float, *, began: float) -> None:
        """Add what earlier starts of the sweep used, and count on from `began`, seconds of the same clock as `now`.
        Raises InputError for a budget that can't be counted."""
        storage = open_storage(f"{self.run_dir}/control")
        if storage.exists(FILE):
            spent = json.loads(storage.read(FILE))
            self.seconds, self.gpu_seconds = spent["seconds"], spent["gpu_seconds"]
        self.seconds += now - began
        self._counted_to = self._saved_at = now
        if self.budget.usd is not None and self.prices.usd_per_hour is None:
            raise InputError("sweep.budget.usd needs a price: give scaling.usd_per_hour, of a GPU or a node")
        if self.budget.gpu_hours is not None and not self.prices.num_gpus:
            raise InputError("sweep.budget.gpu_hours has nothing to count: this sweep computes on CPUs; use hours")

    def count(self, now: float) -> None:
        """Count the time until now, in which the sweep ran."""
        passed, self._counted_to = now - self._counted_to, now
        self.seconds += passed
        self.gpu_seconds += passed * self.prices.num_gpus
        if now - self._saved_at >= SAVE_SECONDS:
            self._saved_at = now
            self.save()

    def skip(self, now: float) -> None:
        """Leave out the time until now, in which it was paused."""
        self._counted_to = now

    def save(self) -> None:
        content = {"seconds": self.seconds, "gpu_seconds": self.gpu_seconds}
        open_storage(f"{self.run_dir}/control").write(FILE, to_json(content).encode())

    @property
    def tokens(self) -> float:
        """That trials were trained on."""
        return self.tokens_of(self.steps)

    def tokens_of(self, steps: Mapping[str, int]) -> float:
        """Of so many steps of each trial."""
        return self.prices.tokens_per_example * sum(self.batch_sizes[id] * count for id, count in steps.items())

    @property
    def usd(self) -> float:
        return self.prices.usd(self.seconds)

    def seconds_left(self) -> float:
        """Of wall time, until hours, gpu_hours or usd are used up; infinity where none of them is bounded."""
        budget, prices = self.budget, self.prices
        rates = ((budget.hours, 1 / 3600), (budget.gpu_hours, prices.num_gpus / 3600), (budget.usd, prices.usd(1.0)))
        used = (self.seconds / 3600, self.gpu_seconds / 3600, self.usd)
        bounded = ((limit - amount, rate) for (limit, rate), amount in zip(rates, used, strict=True) if limit and rate)
        return max(0.0, min((left / rate for left, rate in bounded), default=math.inf))

    def amounts(self) -> dict[str, float]:
        """All of it, in the budget's units."""
        hours = self.seconds / 3600
        return {"hours": hours, "gpu_hours": self.gpu_seconds / 3600, "usd": self.usd, "tokens": self.tokens}

    def exhausted(self, coming: Mapping[str, int], *, report_seconds: float) -> str | None:
        """What is used up, or will be at the end, if running trials continue to their next reports, so many steps and
        seconds from now; None while nothing is."""
        ending, budget = self.prices.reserve_seconds + report_seconds, self.budget
        limits: dict[str, tuple[float | None, Callable[[], float]]] = {
            "hours": (budget.hours, lambda: (self.seconds + ending) / 3600),
            "gpu_hours": (budget.gpu_hours, lambda: (self.gpu_seconds + self.prices.num_gpus * ending) / 3600),
            "usd": (budget.usd, lambda: self.prices.usd(self.seconds + ending)),
            "tokens": (budget.tokens, lambda: self.tokens + self.tokens_of(coming)),
        }
        for name, (limit, amount) in limits.items():
            if limit is not None and amount() >= limit:
                return f"sweep.budget.{name}={limit:g}"
        return None
