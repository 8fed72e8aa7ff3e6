"""The Ray session of a job: the cluster it runs on when there is one, else a local one for as long as the job lasts."""

from __future__ import annotations

import gc
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raytune_llm.compat import running_ray_address
from raytune_llm.errors import InputError

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train lets one report through per interval; its default is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints twice and disturbs datasets' mapping
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # prints an error line at every start; checkpoints cover preemption
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its own CSV and TensorBoard files beside those of tracking/
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # how much of a sweep a killed driver may forget
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before Ray starts, for the driver and, through it, for every worker; a value already set is the user's and
stays."""

_is_own = False
"""Whether this process started the session that it is in."""


def set_environment() -> None:
    """Set them here too, and silence what transformers tells its own maintainers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(*, dashboard: bool = True) -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does) or of `ray start` on this machine, else start a local
    session, with Ray's dashboard or without; nothing when joined."""
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
    """A local session on a port known beforehand, so that its workers can be told its address. Ray Train's helpers look
    for a session of this machine otherwise, and fail where there are two. Its workers inherit this process's
    environment: a runtime environment would start each of them twice over."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ |= told
    try:
        ray.init("local", logging_level=logging.WARNING, include_dashboard=dashboard)
        global _is_own
        _is_own = True
    finally:
        for name in told:
            del os.environ[name]


def end_own_session() -> bool:
    """End the session if `connect` started it for this process alone; whether it did."""
    import ray

    global _is_own
    if not _is_own:
        return False
    _is_own = False
    ray.shutdown()
    return True


def uses_gpu(asked: bool | None) -> bool:
    """Whether trials get GPUs. Raises ValueError when they are asked for and the cluster has none."""
    import ray

    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if asked and not has_gpu:
        raise InputError("scaling.use_gpu=true, but the cluster has no GPU; set it to null or false")
    return has_gpu if asked is None else asked


@contextmanager
def gc_paused() -> Iterator[None]:
    """No collection inside; afterwards what was made is never looked through again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
