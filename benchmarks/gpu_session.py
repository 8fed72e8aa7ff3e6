"""All that a GPU is to show about this project, in one run that ends within minutes.

    python benchmarks/gpu_session.py                      needs one GPU of 80 GB; ends within 9 minutes
    python benchmarks/gpu_session.py --steps machine,correct
    python benchmarks/gpu_session.py --smoke              tiny shapes, on the CPU if need be: shows only that it runs
    python benchmarks/gpu_session.py --table RESULTS      the table of an earlier run, as Markdown

Steps run in order of worth, each a process with a time limit of its own. Every figure is a JSON line in
OUT/results.jsonl as soon as it is known, everything printed is in OUT/log.txt. A step that fails stops nothing; one
that would no longer fit is skipped. Needs no network. What the figures mean: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_steps.step import append, read
from gpu_steps.table import markdown

ROOT = Path(__file__).resolve().parent.parent
MARK = "RAYTUNE_LLM_GPU_STEP"
"""In the environment of all processes of a step, by which those that it leaves behind are found."""
LEAST_SECONDS = 5.0
SMOKE_PATIENCE = 8
"""Times a step's limit and the session's for tiny shapes: these run on any processor, however slow or busy."""
TAIL_LINES = 12


@dataclass(frozen=True)
class Planned:
    """A step: its module, and how long it takes (on an H200) and may take."""

    name: str
    module: str
    expected_seconds: float
    limit_seconds: float
    argument: str = ""


STEPS = [
    Planned("machine", "gpu_steps.machine", 20, 60),
    Planned("correct", "gpu_steps.correct", 30, 90),
    Planned("served", "gpu_steps.served", 50, 110),
    Planned("decoding", "gpu_steps.decoding", 100, 170),
    Planned("sweep", "gpu_steps.whole_sweep", 240, 340),
    Planned("packed-1b", "gpu_steps.packed_speed", 80, 130, "1b"),
    Planned("packed-8b", "gpu_steps.packed_speed", 170, 240, "8b"),
    Planned("lost-actor", "gpu_steps.lost_actor", 55, 90),
    Planned("commands", "gpu_steps.commands", 65, 150),
    Planned("kernels", "gpu_steps.kernels", 30, 70),
    Planned("row-kernels", "gpu_steps.row_kernels", 25, 60),
]


@dataclass
class Session:
    """A run of some steps."""

    out: Path
    scratch: Path
    smoke: bool
    deadline: float
    """By time.monotonic()."""
    environment: dict[str, str]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def run(self, planned: Planned) -> None:
        """One step, to its end, its limit or the session's; its line says how it ended."""
        left = self.deadline - time.monotonic()
        if left < (LEAST_SECONDS if self.smoke else planned.expected_seconds):
            return self._close(planned, "skipped", 0.0, f"{left:.0f} s were left")
        limit = planned.limit_seconds * (SMOKE_PATIENCE if self.smoke else 1)
        log = self.out / "log.txt"
        started, written = time.monotonic(), log.stat().st_size if log.exists() else 0
        status = self._wait(planned, log, min(limit, left))
        with log.open("rb") as file:
            file.seek(written)
            tail = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        self._close(planned, status, time.monotonic() - started, "" if status == "ok" else "\n".join(tail))

    def _wait(self, planned: Planned, log: Path, seconds: float) -> str:
        """Run the step's process; how it ended."""
        mark = f"{planned.name}-{os.getpid()}"
        command = [sys.executable, "-m", planned.module, "--name", planned.name]
        command += ["--results", str(self.results), "--scratch", str(self.scratch), "--argument", planned.argument]
        command += ["--smoke"] if self.smoke else []
        with log.open("ab") as output:
            output.write(f"\n===== {planned.name}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self.environment | {MARK: mark},
                start_new_session=True,
            )
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                return "timed out"
            finally:
                end(process, mark)
        return "ok" if process.returncode == 0 else f"failed ({process.returncode})"

    def _close(self, planned: Planned, status: str, seconds: float, detail: str) -> None:
        line: dict[str, Any] = {"step": planned.name, "status": status, "seconds": round(seconds, 1)}
        append(self.results, line | ({"detail": detail} if detail else {}))
        print(
            f"{planned.name:12s} {status:12s} {seconds:6.1f} s  {detail.splitlines()[-1] if detail else ''}", flush=True
        )


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a step's group of processes, and all others that carry its mark: Ray's are in groups of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """Processes of a step that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in variables:
            found.append(int(file.parent.name))
    return found


def environment() -> dict[str, str]:
    """Of the steps: offline, quiet, this checkout's code, and what the project sets for its own processes."""
    sys.path.insert(0, str(ROOT))
    from raytune_llm.cluster import ENVIRONMENT

    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**ENVIRONMENT, **quiet, **os.environ, "PYTHONPATH": path}


def count_gpu(session: Session) -> None:
    """Tell Ray of the GPU when it doesn't count it by itself, so that later steps measure the GPU all the same."""
    found: dict[str, Any] = {}
    for line in read(session.results):
        found |= line
    if found.get("ray_gpus") == 0 and found.get("device") not in (None, "cpu"):
        session.environment["RAY_OVERRIDE_RESOURCES"] = '{"GPU": 1}'
        append(session.results, {"step": "session", "gpu_override": True})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "outputs" / "gpu_session")))
    parser.add_argument("--minutes", type=float, default=9.0, help="all steps end by then")
    parser.add_argument("--steps", help="some of " + ",".join(step.name for step in STEPS))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", type=Path, metavar="RESULTS")
    return parser.parse_args()


def chosen(names: str | None) -> list[Planned]:
    """The steps of these names, in their order of worth. Raises SystemExit for an unknown name."""
    wanted = names.split(",") if names else [step.name for step in STEPS]
    unknown = sorted(set(wanted) - {step.name for step in STEPS})
    if unknown:
        raise SystemExit(f"--steps: {', '.join(unknown)}; allowed: {', '.join(step.name for step in STEPS)}")
    return [step for step in STEPS if step.name in wanted]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    options = parsed()
    if options.table is not None:
        return print(markdown(read(options.table)))
    minutes = options.minutes * (SMOKE_PATIENCE if options.smoke else 1)
    deadline, steps = time.monotonic() + 60 * minutes, chosen(options.steps)
    if not options.smoke and not has_gpu():
        raise SystemExit("PyTorch sees no GPU here; --smoke runs the steps on tiny shapes without one")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "log.txt", "table.md"):
        (options.out / name).unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-session-"))
    session = Session(options.out, scratch, options.smoke, deadline, environment())
    try:
        for step in steps:
            session.run(step)
            count_gpu(session)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        table = markdown(read(session.results))
        (options.out / "table.md").write_text(table + "\n")
        print(
            f"\n{'tiny shapes: the figures mean nothing' if options.smoke else ''}\n{table}\n\n{options.out}",
            flush=True,
        )


if __name__ == "__main__":
    main()
