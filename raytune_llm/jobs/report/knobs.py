"""The keys in which a sweep's trials differ, and how their values are best laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raytune_llm.jobs.report.data import Knob
from raytune_llm.sweep.axes import is_number
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.tables import short_key

WIDE = 8.0
"""Ratio of the largest to the smallest value from which an axis of positive numbers is multiplicative."""


def knobs_of(plan: Plan, points: Sequence[Mapping[str, Any]]) -> list[Knob]:
    """Of the trials at these points: every key that has at least two values, a missing one counted as one."""
    keys = dict.fromkeys(key for point in points for key in point)
    found = []
    for key in keys:
        values = [point[key] for point in points if key in point]
        distinct = {repr(value) for value in values}
        if len(distinct) + (len(values) < len(points)) > 1:
            axis = plan.axes.get(key)
            is_log = axis is not None and axis.distribution.startswith("log")
            found.append(Knob(key=key, label=short_key(key), scale=scale_of(values, is_log=is_log)))
    labels = [knob.label for knob in found]
    return [knob if labels.count(knob.label) == 1 else _long(knob) for knob in found]


def scale_of(values: Sequence[Any], *, is_log: bool = False) -> str:
    """linear, log or categories."""
    if not all(map(is_number, values)):
        return "categories"
    is_wide = min(values) > 0 and (is_log or max(values) / min(values) >= WIDE)
    return "log" if is_wide else "linear"


def _long(knob: Knob) -> Knob:
    return Knob(key=knob.key, label=knob.key, scale=knob.scale)
