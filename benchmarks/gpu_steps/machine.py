"""What the machine is and can do: versions, matmul and copy rates, and what Ray sees of its GPU."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from .step import Step, main
from .timing import median_seconds

PACKAGES = ("torch", "triton", "transformers", "peft", "trl", "accelerate", "ray", "numpy", "raytune-llm")
MATMUL_SIZE, COPY_BYTES = 8192, 2 << 30
TIMED = 10


def run(step: Step) -> None:
    step.add(python=platform.python_version(), versions={name: found_version(name) for name in PACKAGES})
    step.add(**device_facts(step.device))
    size = 256 if step.smoke else MATMUL_SIZE
    step.add(matmul_flops=matmul_rate(step.device, size))
    step.add(copy_bytes_per_second=copy_rate(step.device, 1 << 20 if step.smoke else COPY_BYTES))
    if step.on_gpu:
        step.add(host_copy_bytes_per_second=host_copy_rate(step.device, COPY_BYTES))
    step.add(**ray_facts(step.on_gpu))


def found_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_facts(device: torch.device) -> dict[str, object]:
    """Name, memory and driver of the GPU."""
    if device.type != "cuda":
        return {"device": "cpu", "cores": os.cpu_count()}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        driver = f"nvidia-smi: {error}"
    return {
        "device": properties.name,
        "gigabytes": round(properties.total_memory / 1e9, 1),
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "driver": driver,
        "cores": os.cpu_count(),
    }


def matmul_rate(device: torch.device, size: int) -> float:
    """FLOP/s of one large bf16 product of random matrices."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = median_seconds(lambda: [a @ b for _ in range(TIMED)], device, warm_up=1, at_most=1.0)
    return TIMED * 2 * size**3 / seconds


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes/s, read and written, of a copy on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return (
        TIMED
        * 2
        * size
        / median_seconds(lambda: [target.copy_(source) for _ in range(TIMED)], device, warm_up=1, at_most=1.0)
    )


def host_copy_rate(device: torch.device, size: int) -> float:
    """Bytes/s from the device into pinned memory, as checkpoints go."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return size / median_seconds(lambda: target.copy_(source, non_blocking=True), device, warm_up=1, at_most=1.0)


def ray_facts(on_gpu: bool) -> dict[str, object]:
    """GPUs that a local session counts, and whether tasks see the GPU when, and only when, they ask for it."""
    import ray

    from raytune_llm import cluster, session

    cluster.connect(dashboard=False)

    @ray.remote
    def sees_gpu() -> bool:
        import torch

        return torch.cuda.is_available()

    counted = ray.cluster_resources().get("GPU", 0)
    facts: dict[str, object] = {"ray_gpus": counted, "gpu_override": os.environ.get("RAY_OVERRIDE_RESOURCES")}
    if on_gpu:
        facts["task_without_gpu_sees_it"] = ray.get(sees_gpu.remote())
    if counted:
        facts["task_with_gpu_sees_it"] = ray.get(sees_gpu.options(num_gpus=1).remote())
    session.end()
    return facts


if __name__ == "__main__":
    main(run)
