"""When a device's memory, or the host's, has no more to give."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or in the host's own allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_cached_memory() -> None:
    """Collect what nothing refers to, and give the device's cached blocks back. Call it when the error is no longer
    handled: its traceback holds the tensors of the pass that failed."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
