"""Optuna's TPE sampler."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.sweep.search.random import Random


@dataclass(frozen=True, kw_only=True)
class Optuna(Random):
    """Points proposed by Optuna's TPE sampler from the results so far."""

    learns = True
