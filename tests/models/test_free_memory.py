import torch

from raytune_llm.models import memory
from raytune_llm.models.memory import free_bytes

CPU = torch.device("cpu")


def test_free_memory_is_known_here():
    assert 0 < free_bytes(CPU) < 1 << 50


def test_files_that_were_read_do_not_fill_a_container(tmp_path, monkeypatch):
    """3 MB of 4 are in use, 2 of them files that give way."""
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\nactive_file 100000\ninactive_file 2000000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) > 4_000_000
