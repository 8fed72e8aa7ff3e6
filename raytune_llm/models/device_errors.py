"""Errors after which a process can use its GPU no more, recognised among those that torch and kernels raise.

A failed kernel (an illegal access, an assertion, a GPU that fell off the bus) leaves the process's CUDA context broken:
every later call fails too, however harmless. Only a new process has a new context. Left out: a lack of memory, which
passes.
"""

from __future__ import annotations

import torch

from raytune_llm.models.out_of_memory import is_out_of_memory

MARKS = ("CUDA error", "CUDA driver error", "HIP error", "cuDNN error", "Triton Error [")


def is_device_lost(error: BaseException) -> bool:
    """Whether it, or what it was raised from or during, is such an error."""
    seen: BaseException | None = error
    while seen is not None:
        found = isinstance(seen, torch.AcceleratorError) or any(mark in str(seen) for mark in MARKS)
        if isinstance(seen, RuntimeError) and found and not is_out_of_memory(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
