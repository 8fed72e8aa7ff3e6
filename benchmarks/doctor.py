"""What it takes to check a large file of records: `python jobs/check.py`, twice, the second time with a cache.

    python benchmarks/doctor.py                                      1,000,000 records of 1 KB, the embedded base
    python benchmarks/doctor.py --records 50000 --kind chat OVERRIDE…   fewer, as conversations; another base, …

Records are words of this project's documents in random order (a third more tokens than prose has), from a seed. Each
check is a fresh process, as a user starts it, whose memory and that of its children is read five times a second.
`--keep FOLDER` keeps the file for the next run. Rates are of the wall clock, and of the CPU seconds of all processes:
on a machine that others use only the latter says something.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINE_BYTES = 1000
ANSWER_SHARE = 0.2
OVERRIDES = ["model=demo"]
POLL_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("plain", "chat"), default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder in which the file is looked for, and left")
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doctor-") as scratch:
        folder = arguments.keep or Path(scratch)
        file = folder / f"{arguments.kind}-{arguments.records}-{arguments.seed}.jsonl"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(file, arguments.records, arguments.kind, arguments.seed)
        print(f"{file.stat().st_size / 1e9:.3f} GB in {arguments.records:,} records", flush=True)
        overrides = [f"data.train={file}", *OVERRIDES, *arguments.overrides]
        runs = {name: checked(overrides, Path(scratch), arguments.records) for name in ("first", "second")}
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    given = {"records": arguments.records, "kind": arguments.kind, "overrides": arguments.overrides}
    print(json.dumps({"benchmark": "doctor", **machine, **given, **runs}))


def write(file: Path, count: int, kind: str, seed: int) -> None:
    """A file of so many records, each a line of about LINE_BYTES."""
    with file.open("w") as stream:
        stream.writelines(f"{json.dumps(record)}\n" for record in records(count, kind, seed))


def records(count: int, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts and answers, as one record or as two turns."""
    generator = random.Random(seed)
    texts = (file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    words = [word for text in texts for word in text.split() if word.isascii()]
    for _ in range(count):
        text = " ".join(generator.choices(words, k=LINE_BYTES // 5))[: LINE_BYTES - 80]
        middle = int(len(text) * (1 - ANSWER_SHARE))
        prompt, answer = f"{generator.getrandbits(32)} {text[:middle].strip()}", text[middle:].strip()
        if kind == "plain":
            yield {"prompt": prompt, "completion": answer}
        else:
            yield {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def checked(overrides: list[str], scratch: Path, count: int) -> dict[str, Any]:
    """Figures of one check; what it prints is passed on. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache"), "RAYTUNE_LLM_HOME": str(scratch / "home")}
    command = [sys.executable, str(ROOT / "jobs/check.py"), *overrides]
    started, cpu_before = time.monotonic(), children_cpu_seconds()
    driver_mb = children_mb = 0.0
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        while process.poll() is None:
            driver_mb = max(driver_mb, resident_mb(process.pid, "VmHWM"))
            children_mb = max(children_mb, sum(resident_mb(child) for child in descendants(process.pid)))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds, cpu_seconds = time.monotonic() - started, children_cpu_seconds() - cpu_before
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "records_per_second": round(count / seconds),
        "records_per_cpu_second": round(count / cpu_seconds),
        "driver_peak_mb": round(driver_mb),
        "children_peak_mb": round(children_mb),
    }


def children_cpu_seconds() -> float:
    """Of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident_mb(pid: int, key: str = "VmRSS") -> float:
    """Resident memory of a process, or by VmHWM its peak; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    except OSError:
        return found
    return found


if __name__ == "__main__":
    main()
