"""A guess of what an epoch costs, from the size of the base (models/cost.py) and the lengths of the examples. For
methods that sample completions nothing is guessed: sampling takes most of their time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.encoding.encode import EncodedSplit
from raytune_llm.data.findings import Finding, Severity
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.models.base import Facts
from raytune_llm.models.cost import CORE_RATE, GPU_RATE, training_flop

PREFIXES = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"))
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


def cost_note(facts: Facts, train: EncodedSplit, batch_size: int) -> Finding | None:
    """The guess for an epoch over these examples, so many in a batch; None without any."""
    tokens = padded_tokens(ExampleTable.of(train.examples).lengths(), batch_size) if len(train.examples) else 0
    if not tokens:
        return None
    flop = training_flop(facts.num_parameters, tokens)
    text = (
        f"the base's weights take {size(2 * facts.num_parameters)} in bfloat16, twice that in float32; an epoch with "
        f"an adapter is about {work(flop)}: {duration(flop / GPU_RATE)} on an H100 or H200, "
        f"{duration(flop / CORE_RATE)} on a CPU core with bfloat16 (a guess from sizes alone)"
    )
    return Finding("cost", Severity.note, "", text)


def padded_tokens(lengths: NDArray[np.integer], batch_size: int) -> int:
    """Tokens of an epoch of shuffled batches, each as wide as its longest example; lengths: (B,)."""
    shuffled = np.random.default_rng(0).permutation(lengths)
    starts = np.arange(0, len(shuffled), batch_size)
    sizes = np.diff(np.append(starts, len(shuffled)))
    return int((np.maximum.reduceat(shuffled, starts) * sizes).sum())


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def work(flop: float) -> str:
    """Arithmetic in the unit that suits it."""
    scale, unit = next(((scale, unit) for scale, unit in PREFIXES if flop >= 10 * scale), (1e9, "GFLOP"))
    return f"{flop / scale:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    unit = next(((length, name) for length, name in UNITS if seconds >= 2 * length), None)
    if unit is None:
        return f"{seconds:.0f} seconds" if seconds >= 2 else "a second"
    return f"{seconds / unit[0]:,.0f} {unit[1]}"
