"""What all tests share: quiet, offline, on one thread, with their own home and cache."""

import os
import secrets
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_worker_niceness", "0")  # by default other tests starve Ray's workers
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), *(str(folder) for folder in TESTS.rglob("*") if folder.is_dir())]
sys.path += [str(TESTS.parent / "benchmarks"), str(TESTS.parent / "deploy/offline")]


LONG_FILES = (
    "test_gpu_session.py",
    "test_errors.py",
    "test_journey.py",
    "test_rlhf_journey.py",
    "test_runner_packed.py",
    "test_lost_actors.py",
    "test_ray_jobs.py",
    "test_failures.py",
    "test_replicas.py",
    "test_endpoint.py",
    "test_extension.py",
    "test_package.py",
    "test_cluster.py",
    "test_run.py",
)


def pytest_collection_modifyitems(items):
    """Long files first, so that at the end no worker is left with one while the other is idle."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(autouse=True)
def own_home(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAYTUNE_LLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data and bases that tests marked `real` run on."""
    folder = os.environ.get("RAYTUNE_LLM_PUBLIC_DATA")
    if not folder:
        pytest.skip("RAYTUNE_LLM_PUBLIC_DATA names no folder of public data")
    return Path(folder)


@pytest.fixture(scope="session")
def real_base() -> Path:
    """The folder of a pretrained instruct model, which tests marked `real` train and serve; see CONTRIBUTING.md."""
    folder = os.environ.get("RAYTUNE_LLM_REAL_BASE")
    if not folder:
        pytest.skip("RAYTUNE_LLM_REAL_BASE names no folder of a real base")
    return Path(folder)


@pytest.fixture(scope="module")
def ray_session():
    """A Ray session of the module's own, in a folder of its own."""
    import ray

    from raytune_llm import cluster, session

    cluster.set_environment()
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {"env_vars": {name: os.environ[name] for name in cluster.ENVIRONMENT}}
        session.begin(dashboard=False, num_cpus=2, _temp_dir=folder, runtime_env=environment)
        yield
        ray.shutdown()
