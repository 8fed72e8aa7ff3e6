"""Groups of examples for methods whose loss couples examples: drawn once, before training, so that every backend keeps
a group whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raytune_llm.data.examples import Example

GROUP_MEMBER = "member"
"""Names the sequences of an example's group members: member1, member2 …"""


def with_group_members(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Each example with the first sequence of `count` others, drawn by the seed; fewer where there are no more
    others."""
    generator = random.Random(seed)
    found: list[Example] = []
    for index, example in enumerate(examples):
        others = generator.sample(range(len(examples) - 1), min(count, len(examples) - 1))
        members = [examples[other + (other >= index)] for other in others]
        sequences = {f"{GROUP_MEMBER}{i}": next(iter(member.values())) for i, member in enumerate(members, start=1)}
        found.append(example | sequences)
    return found
