"""The tuning service as its users run it: `jobs/service.py` as a process, with a Ray head that outlives it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai

from raytune_llm.data.demo import path as demo_path

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
SMALL = (
    "service.auto.n_epochs=[1]",
    "service.auto.batch_size=[8]",
    "service.auto.learning_rate_multiplier=[1.0,3.0]",
    "service.poll_seconds=0.5",
    "service.overrides.evaluation.max_examples=16",
    "service.overrides.evaluation.max_new_tokens=8",
)
"""Sweeps of two short trials."""


class ServiceProcess:
    """One home, and the service process that serves it now."""

    def __init__(self, home, *overrides, keys=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.home, self.keys, self.url = home, keys, f"http://127.0.0.1:{port}"
        keyed = ["service.api_key_env=SERVICE_KEYS"] if keys else []
        self._command = [
            *(sys.executable, "jobs/service.py", f"home={home}", f"service.port={port}", "model=demo"),
            *(*SMALL, *keyed, *overrides),
        ]
        self.log = Path(f"{home}-service.log")
        self._process = None

    def start(self):
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={
                    **own,
                    "PYTHONPATH": str(ROOT),
                    "SERVICE_KEYS": ",".join(self.keys),
                    "XDG_CACHE_HOME": f"{self.home}-cache",
                },
                stdout=log,
                stderr=log,
            )
        self.wait(self._answers, START_SECONDS)
        return self

    def kill(self):
        """As a crash of the machine's memory does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self):
        """As its owner does; its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=120)

    @property
    def runs(self):
        return self._process is not None and self._process.poll() is None

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)

    def patient(self, call):
        """What a call gives, once the service is up."""
        found = []

        def tried():
            with contextlib.suppress(openai.APIConnectionError):
                found.append(call())
            return bool(found)

        self.wait(tried, START_SECONDS, needs_process=False)
        return found[0]

    def wait(self, holds, seconds, *, needs_process=True):
        deadline = time.monotonic() + seconds
        while not holds():
            assert not needs_process or self.runs, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()[-6000:]
            time.sleep(0.2)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                return True
        except OSError:
            return False


def chats(folder, count, name="sarcasm.jsonl", split="train"):
    """So many of the demo's records, as chats in OpenAI's form; the file."""
    lines = demo_path(f"data/sarcasm/{split}.jsonl").read_text().splitlines()[:count]
    records = [json.loads(line) for line in lines]
    file = folder / name
    file.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": record["input_text"]},
                        {"role": "assistant", "content": record["output_text"]},
                    ]
                }
            )
            + "\n"
            for record in records
        )
    )
    return file
