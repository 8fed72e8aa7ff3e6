"""Is the winner luck? The first few configurations of a sweep are trained again, with seeds that chose none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytune_llm.errors import require
from raytune_llm.stores.json import to_json
from raytune_llm.sweep.axes import Point
from raytune_llm.sweep.leaderboard import Row, leaderboard
from raytune_llm.sweep.plan import BASE, STEPS, Plan
from raytune_llm.training.config import Outcome
from raytune_llm.training.objective import Objective

SEED = "seed"
LARGEST_SEED = 2**31


class Records(Enum):
    """On which records configurations are compared again: none that has stopped or ranked a trial."""

    auto = "auto"
    """Those of test where there are any, else as eval."""
    test = "test"
    """Those of data.test."""
    eval = "eval"
    """Half of eval's, which trials then don't see."""


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """Whether the winner of a sweep is luck."""

    top: int
    """Configurations that are trained again at the sweep's end, the first ones by the leaderboard; ≥ 2, or 0 = none:
    the first trial wins as it is."""
    seeds: int
    """Times each of them is trained, with other seeds than before; ≥ 2, or 0 = none."""
    records: Records
    """What they are compared on: auto = data.test where it is given, else half of the eval records, which then stop and
    rank no trial; test; eval."""

    def __post_init__(self) -> None:
        require(self.top == 0 or self.top >= 2, "sweep.confirm.top", self.top, "≥ 2, or 0 for no confirmation")
        require(self.seeds == 0 or self.seeds >= 2, "sweep.confirm.seeds", self.seeds, "≥ 2, or 0 for no confirmation")

    @property
    def is_on(self) -> bool:
        return bool(self.top and self.seeds)


@dataclass(frozen=True)
class Contender:
    """A configuration that is trained again."""

    row: Row
    """Its place in the leaderboard."""
    points: tuple[Point, ...]
    """Its values, each time with another seed, without its base."""

    @property
    def trial(self) -> str:
        return self.row.trial

    @property
    def base(self) -> str | None:
        return self.row.values.get(BASE)


def contenders(
    outcomes: Sequence[Outcome], plan: Plan, objective: Objective, confirm: Confirm, own_seed: int
) -> list[Contender]:
    """The configurations to be trained again, the best first, each as long as its place in the leaderboard says; none
    where there are no two, as with a single trial."""
    first: dict[str, Row] = {}
    for row in leaderboard(outcomes, plan, objective):
        first.setdefault(row.trial, row)
    rows = list(first.values())[: confirm.top] if confirm.is_on else []
    return [Contender(row, points_of(row, confirm.seeds, own_seed)) for row in rows] if len(rows) > 1 else []


def points_of(row: Row, num_seeds: int, own_seed: int) -> tuple[Point, ...]:
    """A configuration's values with that many fresh seeds: the same ones whenever it is asked for again."""
    values = {key: value for key, value in row.values.items() if key != BASE}
    name = {SEED: own_seed, **row.values}
    return tuple({**values, SEED: fresh_seed(name, number)} for number in range(num_seeds))


def fresh_seed(values: Mapping[str, Any], number: int) -> int:
    """A seed that depends on a configuration, its own seed and a number, and that nobody chose."""
    name = f"{number}:{to_json(dict(sorted(values.items())))}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % LARGEST_SEED


def steps_of(row: Row, plan: Plan, own_steps: int) -> int:
    """How long a configuration is trained."""
    return int({STEPS: own_steps, **plan.values(row.values)}[STEPS])
