"""The Ray session of a job: the cluster it runs on when there is one, else a local one for as long as the job lasts."""

from __future__ import annotations

import gc
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from raytune_llm import session
from raytune_llm.compat import (
    AutoscalerReport,
    autoscaler_report,
    free_cpus_by_node,
    ray_gpu_count,
    running_ray_address,
)
from raytune_llm.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train lets one report through per interval; its default is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints twice and disturbs datasets' mapping
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # prints an error line at every start; checkpoints cover preemption
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raytune_llm.serving.proxy_middlewares",  # bounded connections
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # by default a proxy that is not ready after 15 s is killed
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",  # what workers print comes to the driver as they print it: no colour codes in logs
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # nor (PackActor pid=1234) in front of each line
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C ends Tune as if the trials had ended, and a winner is published
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its own CSV and TensorBoard files in addition to those of tracking/
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's state of all trials, which nothing reads, written now and then
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hides the GPUs from a worker that reserves none, as use_gpu=false does
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # torch 2.11 prefers cuDNN's attention, which plans each new shape anew
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # batches of changing shapes leave fewer holes in GPU memory
}
"""Set before Ray starts, for the driver and, through it, for every worker; a value that the user has set stays."""
PASSED_ON = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL")
"""What W&B's agent sets for a run that it drives, and where its server is: passed on to a cluster's workers where the
driver has it. No keys: a job's environment is shown in Ray's dashboard."""
GPU_WAIT_SECONDS = 900.0
"""How long a job that has no key for it waits for a GPU node."""
REACTION_SECONDS = 20.0
"""How long an autoscaler may take to start a node for a request; it looks at requests every 5 s."""
MESSAGE_SECONDS = 60.0
POLL_SECONDS = 1.0
RELEASE_SECONDS = 3.0
"""How long ended actors may take to give their CPUs back."""


def set_environment() -> None:
    """Set ENVIRONMENT in this process, and silence transformers' FutureWarnings."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    former_name = os.environ.get("PYTORCH_CUDA_ALLOC_CONF")  # read by torch where the present one isn't set
    for name, value in (ENVIRONMENT | ({"PYTORCH_ALLOC_CONF": former_name} if former_name else {})).items():
        os.environ.setdefault(name, value)


def connect(*, dashboard: bool = True) -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does) or of `ray start` on this machine, else start a local
    session, with Ray's dashboard or without; nothing when already joined.

    Raises InputError for a malformed RAY_ADDRESS, or a token that can't be read.
    """
    set_environment()  # first, as Ray reads some of it when it is imported
    import ray

    if ray.is_initialized():
        return
    session.forget_token()
    try:
        address = running_ray_address()
    except ValueError as error:
        raise InputError(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} can't be used: {error}") from error
    if address is None:
        num_gpus = uncounted_gpus()
        session.start(dashboard=dashboard, **({"num_gpus": num_gpus} if num_gpus else {}))
        return
    names = [*ENVIRONMENT, *(name for name in PASSED_ON if name in os.environ)]
    environment: dict[str, object] = {"env_vars": {name: os.environ[name] for name in names}}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # not submitted: its working directory is not on the workers
        environment["py_modules"] = [str(Path(__file__).parent)]
    ray.init(logging_level=logging.WARNING, runtime_env=environment)
    if shows_gpu() and total_gpus() == 0:
        print(
            "! this machine has a GPU, but the Ray cluster that this job joined counts none, so it computes on CPUs; "
            "start Ray with `ray start --num-gpus=N`, or with RAY_OVERRIDE_RESOURCES='{\"GPU\": N}' in its environment",
            flush=True,
        )


def job_server() -> str | None:
    """Address of the connected cluster's job server; None where it has none, or none is connected."""
    import ray

    if not ray.is_initialized():
        return None
    address = ray.init(ignore_reinit_error=True, logging_level=logging.WARNING).address_info.get("webui_url")
    return f"http://{address}" if address else None


def shows_gpu(root: Path = Path("/")) -> bool:
    """Whether this machine has device files of an NVIDIA GPU that CUDA_VISIBLE_DEVICES doesn't hide. Calls no driver,
    imports no torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    names = (file.name.removeprefix("nvidia") for file in (root / "dev").glob("nvidia*"))
    return any(name.isdigit() for name in names) or any((root / "proc/driver/nvidia/gpus").glob("*"))


def uncounted_gpus() -> int:
    """GPUs of this machine that CUDA sees although Ray counts none; Ray asks NVML, which some containers lack."""
    if not shows_gpu() or "GPU" in os.environ.get("RAY_OVERRIDE_RESOURCES", "") or ray_gpu_count():
        return 0
    import torch

    found = torch.cuda.device_count()
    if found:
        print(f"Ray counts no GPU here, CUDA sees {found}: this session has {found}", flush=True)
    else:
        print("! this machine has a GPU that CUDA can't use (see nvidia-smi); this job computes on CPUs", flush=True)
    return found


def total_gpus() -> float:
    """GPUs of the connected cluster, as far as its nodes have joined it."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def cpus_for_a_run(num_workers: int, use_gpu: bool) -> float:
    """CPUs for each worker of a run that has the cluster to itself: the free ones of a node, shared out among the
    workers; 1 next to a GPU."""
    return 1.0 if use_gpu else float(max(1, free_cpus() // num_workers))


def largest_node() -> float:
    """CPUs of the largest node."""
    import ray

    return max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)


def cpus_of_a_node() -> int:
    """CPUs of a node that a process may compute with, at most OMP_NUM_THREADS where that is set."""
    most = int(largest_node())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(most, int(wanted)) if wanted.isdecimal() else most


def uses_gpu(
    requested: bool | None,
    *,
    key: str = "scaling.use_gpu",
    bundles: Sequence[Mapping[str, float]] = ({"GPU": 1},),
    wait_seconds: float = GPU_WAIT_SECONDS,
) -> bool:
    """Whether a job computes on GPUs. Where an autoscaler can start them, waits for the first one.

    Args:
        requested: by `key`; True = it must, False = it doesn't, None = if the cluster has any or can start some.
        bundles: what each of its workers reserves, as Ray's resources.

    Raises:
        InputError: GPUs are requested and there are none, or fewer than the workers need, or none came in time.
    """
    if requested is False:
        return False
    found, needed = total_gpus(), sum(bundle.get("GPU", 0) for bundle in bundles)
    autoscales = not session.is_own() and autoscaler_report() is not None
    if found and (found >= needed or autoscales):
        return True
    if found:
        raise InputError(
            f"{key}: {len(bundles)} workers need {needed:g} GPUs, and the cluster has {found:g}; lower their number, "
            f"or set {key}=false"
        )
    if autoscales:
        return wait_for_gpu(bundles, key=key, required=bool(requested), wait_seconds=wait_seconds)
    if requested:
        raise InputError(f"{key}=true, but the cluster has no GPU; set it to null or false")
    return False


def wait_for_gpu(bundles: Sequence[Mapping[str, float]], *, key: str, required: bool, wait_seconds: float) -> bool:
    """Ask the cluster's autoscaler for these bundles until a first GPU has joined. False when one isn't `required` and
    the autoscaler starts no node for them.

    Raises InputError when none joined in time.
    """
    from ray.autoscaler.sdk import request_resources

    print(f"the cluster has no GPU yet; asking its autoscaler for {len(bundles)} × {dict(bundles[0])} …", flush=True)
    started = last_message = time.monotonic()
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        while total_gpus() == 0:
            now, report = time.monotonic(), autoscaler_report()
            required = required or (report is not None and report.starts_gpus)
            if not required and now - started > REACTION_SECONDS:
                print("the autoscaler starts no GPU node; this job computes on CPUs", flush=True)
                return False
            if now - started > wait_seconds:
                raise InputError(_no_gpu_came(report, key, wait_seconds))
            if now - last_message > MESSAGE_SECONDS:
                last_message = now
                print(
                    f"waiting for a GPU node, {now - started:.0f} of at most {wait_seconds:.0f} s; being started: "
                    f"{_starting(report)}",
                    flush=True,
                )
            time.sleep(POLL_SECONDS)
    finally:
        request_resources(bundles=[])
    print(f"a GPU joined the cluster after {time.monotonic() - started:.0f} s", flush=True)
    return True


def _starting(report: AutoscalerReport | None) -> str:
    """The nodes that an autoscaler is starting, for the terminal."""
    starting = report.starting if report is not None else {}
    return ", ".join(f"{count} {node_type}" for node_type, count in starting.items()) or "none"


def _no_gpu_came(report: AutoscalerReport | None, key: str, wait_seconds: float) -> str:
    reasons = "".join(f"; {name}: {why}" for name, why in (report.unavailable if report else {}).items())
    longer = ", raise scaling.wait_seconds" if key.startswith("scaling.") else ""
    return (
        f"no GPU node joined the cluster within {wait_seconds:.0f} s (being started: {_starting(report)}{reasons}); "
        f"see `ray status`, check the GPU node types and quotas{longer}, or set {key}=false"
    )


def as_task(function: Callable[P, T], *, use_gpu: bool) -> Callable[P, T]:
    """The function as a Ray task, where the accelerators are; calling it waits for its result. Without a GPU it takes
    the CPUs of a node that are free by then and computes on as many threads, at most OMP_NUM_THREADS where that is set.

    Raises:
        InputError: the function's own.
    """
    import ray

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        num_cpus = 1 if use_gpu else free_cpus()
        task = ray.remote(num_cpus=num_cpus, num_gpus=1 if use_gpu else 0)(on_threads(function, num_cpus))
        try:
            return ray.get(task.remote(*args, **kwargs))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise

    return run


def free_cpus() -> int:
    """The most CPUs that are free on one node, from 1 to OMP_NUM_THREADS; waits a moment for those of ended actors. No
    more are counted than are free, as one that an endpoint holds may never be."""
    most = cpus_of_a_node()
    deadline = time.monotonic() + RELEASE_SECONDS
    while (found := int(max(free_cpus_by_node(), default=0))) < most and time.monotonic() < deadline:
        time.sleep(RELEASE_SECONDS / 20)
    return max(1, min(found, most))


def on_threads(function: Callable[P, T], count: int) -> Callable[P, T]:
    """The function with so many threads for torch's operations; afterwards the process has as many as before."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(before)

    return run


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside; objects made there are never scanned afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
