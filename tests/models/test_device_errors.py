"""Which errors leave a process without its GPU, and which only without memory."""

import pytest
import torch

from raytune_llm.models.device_errors import is_device_lost
from raytune_llm.models.out_of_memory import is_out_of_memory

LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
]
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("CUDA error: only a text"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_lost(error):
    assert is_device_lost(error)
    try:
        try:
            raise error
        except RuntimeError as inner:
            raise ValueError("while storing") from inner
    except ValueError as outer:
        assert is_device_lost(outer)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory(error):
    assert is_out_of_memory(error) and not is_device_lost(error)


@pytest.mark.parametrize("error", NEITHER, ids=str)
def test_neither(error):
    assert not is_out_of_memory(error) and not is_device_lost(error)
