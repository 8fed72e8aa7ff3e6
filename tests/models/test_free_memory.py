import torch

from raytune_llm.models.memory import free_bytes


def test_free_memory_is_known_here():
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50
