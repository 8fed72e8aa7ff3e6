"""Jobs on a Ray cluster with token authentication, started here: submitted, refused, and joined by RAY_ADDRESS."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from worlds import write_base, write_records

from raytune_llm.stores.registry import Registry

ROOT = Path(__file__).parents[1]
START_SECONDS = 120
UPLOAD_MIB = 100
"""What the job server takes at most."""


@dataclass(frozen=True)
class Cluster:
    """A running head node."""

    dashboard: str
    gcs: str
    folder: str

    @property
    def token(self):
        """The file with its token."""
        return f"{self.folder}/token"

    def environment(self, **more):
        """Of a client that has the token."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYTUNE_LLM_"))}
        return {**own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": self.token, **more}

    def submit(self, folder, *entrypoint, environment=None):
        """`ray job submit` to its end; its exit status and all that it printed."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.dashboard]
        done = subprocess.run(
            [*command, "--working-dir", ".", "--", *entrypoint],
            cwd=folder,
            env=environment or self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def free_ports(count):
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster():
    """`ray start --head` in a process group and a folder of its own, ended by its process ids."""
    with tempfile.TemporaryDirectory(prefix="rj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        gcs, dashboard, client, agent = free_ports(4)
        found = Cluster(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", folder)
        Path(found.token).write_text("a-long-random-word-of-this-test-0123456789")
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--num-cpus=2", f"--temp-dir={folder}/ray", "--node-ip-address=127.0.0.1", "--include-dashboard=true"),
        ]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with Path(folder, "log").open("w") as log:
            head = subprocess.Popen(
                command,
                env=found.environment(PATH=path, RAY_ADDRESS=found.gcs),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for(found, head, Path(folder, "log"))
            yield found
        finally:
            for pid in session_of(head.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait(timeout=60)


def session_of(leader):
    """Process ids of a session, and of all that descend from it."""
    parents, sessions = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
    found = {pid for pid, session in sessions.items() if session == leader}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def wait_for(cluster, head, log):
    """Until the job server answers one who has the token."""
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {Path(cluster.token).read_text()}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert head.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            assert time.monotonic() < deadline, f"{error}\n{log.read_text()}"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """This project as a user's checkout: with files that .gitignore names, and changes by which its code is known."""
    folder = tmp_path_factory.mktemp("checkout") / "mine"
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith("#")]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    (folder / ".venv").mkdir()
    with (folder / ".venv" / "large").open("wb") as file:
        file.truncate(2 * UPLOAD_MIB << 20)
    change(folder / "raytune_llm/training/progress.py", 'f"step {step}/', 'f"uploaded step {step}/')
    change(folder / "conf/train.yaml", "name: tuned", "name: uploaded")
    change(folder / "raytune_llm/jobs/summary.py", '"registered", f"', '"uploaded", f"')
    return folder


def change(file, old, new):
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))


def arguments(folder, *overrides):
    """A short run on a tiny base; paths have spaces."""
    if not (folder / "my base").exists():
        write_base(folder / "my base", "llama")
        write_records(folder / "my data")
    return [
        f"model.name_or_path={folder}/my base",
        f"data.train={folder}/my data/train.jsonl",
        f"data.eval={folder}/my data/eval.jsonl",
        f"home={folder}/my home",
        "tuning.steps=2",
        "tuning.eval_every=1",
        "tuning.adapter_size=2",
        "evaluation.max_new_tokens=4",
        *overrides,
    ]


def test_a_wrong_override_fails_the_job_with_its_message(cluster, upload, tmp_path):
    """Also: the upload is small, since what .gitignore names stays here."""
    status, output = cluster.submit(upload, "python", "jobs/train.py", *arguments(tmp_path, "tuning.stpes=3"))
    assert status == 1 and re.search(r"Job '\w+' failed", output)
    assert "error: unknown key: tuning.stpes; nearest valid: tuning.steps" in output and "Traceback" not in output
    packages = Path(cluster.folder).glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    (unpacked,) = (package for package in packages if package.is_dir())
    files = [file for file in unpacked.rglob("*") if file.is_file()]
    assert not (unpacked / ".venv").exists() and (unpacked / "raytune_llm" / "jobs" / "schema.py") in files
    assert sum(file.stat().st_size for file in files) < UPLOAD_MIB << 20


def test_a_submitted_job_tunes_with_the_uploaded_code(cluster, upload, tmp_path):
    """Driver, workers and conf are the upload's, not those installed here; the version stands at home."""
    status, output = cluster.submit(upload, "python", "jobs/train.py", *arguments(tmp_path))
    assert status == 0 and re.search(r"Job '\w+' succeeded", output), output
    assert "uploaded step 2/2" in output and re.search(r"uploaded +uploaded@1", output)
    version = Registry(f"{tmp_path}/my home/registry").show("uploaded@1")
    assert version.card.config["tuning"]["steps"] == 2 and version.card.base == f"{tmp_path}/my base"


@pytest.mark.parametrize("token", [None, "another-long-random-word-of-this-test-9876543210"])
def test_who_has_no_token_is_refused(cluster, upload, tmp_path, token):
    (tmp_path / "token").write_text(token or "")
    mode = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    status, output = cluster.submit(upload, "touch", str(tmp_path / "ran"), environment=cluster.environment(**mode))
    assert status != 0 and (
        "401" in output or "403" in output or "nauthorized" in output or "uthentication" in output
    ), output
    assert not (tmp_path / "ran").exists()


def test_a_driver_that_joins_by_address_brings_its_code(cluster, upload, tmp_path):
    """Not submitted, but started next to the cluster: its workers get the code that the driver runs."""
    (tmp_path / "asks.py").write_text(
        "import ray, raytune_llm.cluster as c\n"
        "c.connect()\n"
        "def where():\n"
        "    import raytune_llm.jobs.schema\n"
        "    return raytune_llm.jobs.schema.__file__\n"
        "print('workers:', ray.get(ray.remote(where).remote()))\n"
        "print('at:', ray.get_runtime_context().gcs_address)\n"
    )
    environment = cluster.environment(RAY_ADDRESS=cluster.gcs, PYTHONPATH=str(upload))
    done = subprocess.run(
        [sys.executable, tmp_path / "asks.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(rf"at: .*:{cluster.gcs.rpartition(':')[2]}\n", done.stdout)
    assert "/runtime_resources/py_modules_files/" in done.stdout
