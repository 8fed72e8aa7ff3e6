"""Groups of examples for methods whose loss couples examples: drawn once, before training, so that every backend keeps
a group whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from raytune_llm.data.examples import Example
from raytune_llm.data.tables.example_table import ExampleTable

GROUP_MEMBER = "member"
"""Names the sequences of an example's group members: member1, member2 …"""


def with_group_members(examples: Sequence[Example], count: int, seed: int) -> ExampleTable:
    """Each example with the first sequence of `count` others, drawn by the seed; fewer where there are no more
    others."""
    table, generator = ExampleTable.of(examples), random.Random(seed)
    num_others = max(len(table) - 1, 0)
    others = np.empty((len(table), min(count, num_others)), dtype=np.int64)
    for index in range(len(table)):
        drawn = generator.sample(range(num_others), others.shape[1])
        others[index] = [other + (other >= index) for other in drawn]
    columns = dict(table.columns)
    for i, rows in enumerate(others.T, start=1):
        columns[f"{GROUP_MEMBER}{i}"] = table.columns[table.names[0]].select(rows)
    return ExampleTable(columns)
