"""When a device's memory, or the host's, has no more to give."""

from __future__ import annotations

import gc

import torch

MARKS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Of the host's allocator, the driver, kernels and their workspaces, which don't go through torch's own allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or in the host's own allocator."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in MARKS)


def free_cached_memory() -> None:
    """Collect what nothing refers to, and give the device's cached blocks back. Call it when the error is no longer
    handled: its traceback holds the tensors of the pass that failed."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
