"""A metric as a file, with its statistics of every record: how a sweep's driver learns what its trials measured.

Light: it imports no torch. Leaves out which record is which: all trials of a job have the same, in the same order.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from raytune_llm.evaluation.metrics import VALUES, Metric
from raytune_llm.evaluation.terms import Better
from raytune_llm.stores.storage import open_storage

FILE = "eval_records.npz"


def write_metric(directory: str, metric: Metric) -> None:
    """Put a metric's file in a folder or URI, in place of what was there."""
    content = io.BytesIO()
    names: dict[str, Any] = {"value": np.array(metric.value.__name__), "better": np.array(metric.better.value)}
    np.savez_compressed(content, statistics=metric.statistics, **names)
    open_storage(directory).write(FILE, content.getvalue())


def read_metric(directory: str) -> Metric | None:
    """The metric in a folder or URI; None where it has none."""
    try:
        content = open_storage(directory).read(FILE)
    except FileNotFoundError:
        return None
    with np.load(io.BytesIO(content)) as found:
        return Metric(found["statistics"], VALUES[str(found["value"])], Better(str(found["better"])))
