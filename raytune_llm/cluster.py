"""The Ray session of a job: the cluster it runs on when there is one, else a local one for as long as the job lasts."""

from __future__ import annotations

import gc
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from raytune_llm.compat import running_ray_address
from raytune_llm.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train lets one report through per interval; its default is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints twice and disturbs datasets' mapping
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # prints an error line at every start; checkpoints cover preemption
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its own CSV and TensorBoard files in addition to those of tracking/
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # how much of a sweep may be lost with its driver
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before Ray starts, for the driver and, through it, for every worker; a value that the user has set stays."""

_is_own = False
"""Whether this process started its session."""


def set_environment() -> None:
    """Set ENVIRONMENT in this process, and silence transformers' FutureWarnings."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(*, dashboard: bool = True) -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does) or of `ray start` on this machine, else start a local
    session, with Ray's dashboard or without; nothing when already joined.

    Raises InputError for a malformed RAY_ADDRESS.
    """
    import ray

    if ray.is_initialized():
        return
    set_environment()
    try:
        address = running_ray_address()
    except ValueError as error:
        raise InputError(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} can't be used: {error}") from error
    if address is None:
        start_session(dashboard)
        return
    environment: dict[str, object] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # not submitted: its working directory is not on the workers
        environment["py_modules"] = [str(Path(__file__).parent)]
    ray.init(logging_level=logging.WARNING, runtime_env=environment)


def start_session(dashboard: bool) -> None:
    """A local session on a port known beforehand, whose address its workers find in their environment. Ray Train's
    helpers look for a session of this machine otherwise, and fail where there are two. Its workers inherit this
    process's environment: a runtime environment would start each of them twice."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    addresses = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ |= addresses
    try:
        ray.init("local", logging_level=logging.WARNING, include_dashboard=dashboard)
        global _is_own
        _is_own = True
    finally:
        for name in addresses:
            del os.environ[name]


def end_own_session() -> bool:
    """End the session if `connect` started it for this process; whether it did."""
    import ray

    global _is_own
    if not _is_own:
        return False
    _is_own = False
    ray.shutdown()
    return True


def uses_gpu(requested: bool | None) -> bool:
    """Whether trials get GPUs. Raises InputError when they are requested and the cluster has none."""
    import ray

    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if requested and not has_gpu:
        raise InputError("scaling.use_gpu=true, but the cluster has no GPU; set it to null or false")
    return has_gpu if requested is None else requested


def as_task(function: Callable[P, T], *, use_gpu: bool) -> Callable[P, T]:
    """The function as a Ray task, where the accelerators are; calling it waits for its result.

    Raises:
        InputError: the function's own.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(function)

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ray.get(task.remote(*args, **kwargs))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise

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
