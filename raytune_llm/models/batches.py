"""Batches of like lengths, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of like lengths together, at most batch_size in each, the longest first: what doesn't fit fails at
    once."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed; allowed: ≥ 1")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def run_batches(lengths: Sequence[int], batch_size: int, run: Callable[[list[int]], None]) -> None:
    """Call `run` with the indices of each of `batches`. When one runs out of memory, it and the rest are run again in
    batches of half the size; `run` stores what it finds by index, so a second run replaces the first.

    Raises what `run` raises; out of memory only for a single item.
    """
    order = [index for batch in batches(lengths, batch_size) for index in batch]
    while order:
        batch = order[:batch_size]
        try:
            run(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            batch_size = len(batch) // 2
        else:
            order = order[batch_size:]
            continue
        free_cached_memory()
