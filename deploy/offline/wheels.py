"""Wheels for another machine: fetched, built from source where they are pure Python, and freed of what isn't needed
without internet."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from closure import Target

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("raytune_llm", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
UNNEEDED = {
    "ray": ("ray/jars/", "ray/rllib/", "ray/llm/", "ray/cpp/", "ray/dashboard/client/build/static/js/", "ray/tests/"),
    "numpy": ("numpy/tests/", "numpy/_core/tests/"),
    "pandas": ("pandas/tests/",),
    "pyarrow": ("pyarrow/tests/", "pyarrow/include/", "pyarrow/src/"),
    "nltk": ("nltk/test/",),
    "sympy": ("sympy/*/tests/",),
}
"""By package, what is left out: Java and C++ APIs, Ray's other libraries, the dashboard's pages, tests."""


def fetch(packages: Mapping[str, str], target: Target, folder: Path) -> None:
    """A wheel of each package for the target. Raises SystemExit when one has none and isn't pure Python."""
    folder.mkdir(parents=True, exist_ok=True)
    if packages:
        where = [f"--platform={platform}" for platform in target.platforms]
        wanted = [f"{name}=={version}" for name, version in packages.items()]
        command = [
            *PIP,
            "download",
            "--no-deps",
            "--no-build-isolation",
            f"--dest={folder}",
            f"--python-version={target.python}",
            *where,
        ]
        run([*command, "--implementation=cp", *wanted])
    for source in [file for file in folder.iterdir() if file.suffix != ".whl"]:
        build(source, folder)
        source.unlink()


def build(source: Path, folder: Path) -> None:
    """A wheel of a source archive or folder, for any machine. Raises SystemExit when it is only for this one."""
    with tempfile.TemporaryDirectory() as scratch:
        run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", scratch, str(source)])
        (wheel,) = Path(scratch).iterdir()
        if not wheel.stem.endswith("-none-any"):
            raise SystemExit(f"{source.name} has no wheel for the target, and built here it is only for this machine")
        shutil.move(wheel, folder)


def build_project(folder: Path) -> None:
    """The project's own wheel, built from a copy, so that the checkout stays clean."""
    with tempfile.TemporaryDirectory() as scratch:
        ignored = shutil.ignore_patterns("__pycache__")
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(scratch, name), ignore=ignored)
            else:
                shutil.copy(source, scratch)
        build(Path(scratch), folder)


def strip(wheel: Path) -> None:
    """Rewrite a wheel without what isn't needed, uncompressed: the archive around all wheels compresses better."""
    name = wheel.name.split("-")[0].lower()
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            if is_unneeded(name, item.filename):
                continue
            data = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if not is_unneeded(name, line.split(",")[0])).encode()
            item.compress_type = zipfile.ZIP_STORED
            new.writestr(item, data)
    partial.replace(wheel)


def is_unneeded(package: str, file: str) -> bool:
    """Whether a file of a package is left out; * is one folder of any name."""
    parts = file.split("/")
    for pattern in UNNEEDED.get(package, ()):
        wanted = pattern.rstrip("/").split("/")
        if len(parts) > len(wanted) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=False)):
            return True
    return False


def run(command: list[str]) -> None:
    """Raises SystemExit with what the command printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
