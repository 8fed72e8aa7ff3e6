"""A trial's settings as trackers show them: knobs under the short keys that people know, further settings nested.

base, method, adapter, data, seed                   what is tuned, how, on what
steps, learning_rate_multiplier, batch_size, …      every key of tuning.*, whether the sweep varies it or not
learning_rate                                       the peak rate that the multiplier comes to
alpha, dropout, beta, …                             options of the adapter and the method
objective, goal                                     the metric that decides, minimize or maximize
tuning, model, scaling, adapter_options, …          all again, as in conf/, so that dotted keys are found, too
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from raytune_llm.methods.base import Method
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.components import TYPE, describe
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.objective import Objective

NOT_KNOBS = (TYPE, "metric", "init_adapter")
"""Options of a choice that no short key shows."""
GOALS = {True: "minimize", False: "maximize"}
"""By whether lower is better."""


def run_config(config: TrialConfig, *, trial: str | None = None) -> dict[str, Any]:
    """Plain values; `trial`: its id, None for a whole sweep."""
    method, adapter = describe(config.method, Method), describe(config.adapter, Adapter)
    tuning = describe(config.tuning)
    found: dict[str, Any] = {
        "job": config.name,
        "run": config.run,
        **({} if trial is None else {"trial": trial}),
        "base": base_name(config.model.loading()["name_or_path"]),
        "method": name_of(config.method, Method),
        "adapter": name_of(config.adapter, Adapter),
        "data": config.data_name,
        **goal(config.objective),
        **short(tuning),
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }
    mixture = {"subset": config.data.subset, "weights": dict(config.data.weights)}
    for group, values in (("adapter", adapter), ("method", method), ("data", mixture)):
        for key, value in short(values).items():
            if key not in NOT_KNOBS:
                found[key if key not in found else f"{group}_{key}"] = value
    options = {"adapter_options": adapter, "method_options": method, "data_options": mixture}
    return found | {"tuning": tuning, "model": config.model.loading(), "scaling": describe(config.scaling), **options}


def goal(objective: Objective) -> dict[str, str]:
    """The metric that decides, and in which direction."""
    return {"objective": objective.metric, "goal": GOALS[objective.lower_is_better]}


def short(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by the last part of their keys; of a nested group with its name before: early_stopping_patience."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= short(value, f"{prefix}{key}_") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def base_name(name_or_path: str) -> str:
    """A hub id as it is, of a folder its name."""
    return os.path.basename(name_or_path.rstrip("/")) if os.path.isabs(name_or_path) else name_or_path
