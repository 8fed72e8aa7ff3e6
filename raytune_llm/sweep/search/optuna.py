"""Optuna's TPE sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.sweep.search.random import Random


@dataclass(frozen=True, kw_only=True)
class Optuna(Random):
    """Points proposed by Optuna's TPE sampler from the results so far."""

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=metric, mode=mode, seed=seed)
