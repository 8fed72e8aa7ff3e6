"""How much memory is free on a device."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
"""Of this container, by cgroup v2; elsewhere its files are missing."""


def free_bytes(device: torch.device) -> int:
    """Memory that could still be taken on a device; of the CPU, within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - _in_container())
    return available


def held_bytes(device: torch.device) -> int:
    """What this process holds of a device's memory now: of a GPU's by torch's allocator, else what is resident."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else _resident_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most that it has held so far."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _resident_bytes("VmHWM")


def _resident_bytes(field: str) -> int:
    """Of this process, by the kernel's name of it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def _in_container() -> int:
    """What the container holds and could not give back: files that were read stay in memory until it is wanted."""
    counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    return int((CGROUP / "memory.current").read_text()) - int(counts["inactive_file"])
