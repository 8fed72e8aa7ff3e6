"""jobs/serve.py as a user meets it: started, queried, interrupted."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from serving_world import make_base, publish, write_adapter
from test_app import TEXT
from test_failures import free_port

from raytune_llm.stores.registry import Registry

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_interrupted_endpoint_ends_without_a_word_of_rays(tmp_path):
    """Slow for a session of its own: what Ray prints at the end of one is seen in a process of its own alone."""
    base = make_base(tmp_path / "tiny")
    registry = Registry(str(tmp_path / "home" / "registry"))
    publish(registry, base, "wit", write_adapter(base, tmp_path / "wit", seed=1))
    port = free_port()
    command = [sys.executable, "jobs/serve.py", "adapter=wit", f"home={tmp_path}/home", f"serve.port={port}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = []
    for line in job.stdout:
        printed.append(line)
        if line.startswith("Ctrl-C"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(TEXT).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                assert json.load(response)["usage"]["completion_tokens"] == 8
            job.send_signal(signal.SIGINT)
    assert job.wait(timeout=60) == 0
    assert [line.split()[0] for line in printed if line.strip()] == ["parity", "serving", "next", "Ctrl-C"]
