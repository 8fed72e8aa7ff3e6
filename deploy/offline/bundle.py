"""The project and all that it needs, as files for a cluster without internet: `make bundle`, docs/offline.md.

    python deploy/offline/bundle.py --python 3.12 --platform manylinux_2_28_x86_64 --out FOLDER --max-mb 60 --have torch

Runs where there is internet, in an environment made from constraints.txt, whose metadata says what needs what. Writes
the wheels as an archive in parts, install.sh, check.py, and lists of what is inside. Left out: torch, and what the
target has.
"""

from __future__ import annotations

import argparse
import ensurepip
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from closure import Target, closure, read_have, read_pins
from packaging.utils import parse_wheel_filename
from parts import write_parts
from wheels import ROOT, build_project, fetch, strip

PROJECT = "raytune-llm"
SHIPPED = ("install.sh", "install.py", "check.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the target, e.g. 3.12")
    parser.add_argument("--platform", required=True, help="of the target's wheels, e.g. manylinux_2_28_x86_64")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-mb", type=float, default=60.0, help="largest part, in 10⁶ bytes")
    parser.add_argument("--have", default="", help="what the target has: a list with commas, or a file")
    parser.add_argument("--whole", action="store_true", help="strip nothing from the wheels")
    options = parser.parse_args()
    target = Target(options.python, options.platform)
    pins = read_pins((ROOT / "constraints.txt").read_text())
    packages = closure(PROJECT, requirements, pins, read_have(options.have), target)
    print(f"{len(packages)} packages besides {PROJECT}: {', '.join(packages)}", flush=True)
    parts = write_bundle(packages, target, options.out, part_bytes=int(options.max_mb * 1e6), is_whole=options.whole)
    for part in parts:
        print(f"{part.stat().st_size / 1e6:8.1f} MB  {part}")
    print(f"copy {options.out} to the target, and run there: sh install.sh")


def requirements(package: str) -> list[str]:
    """What an installed package needs. Raises SystemExit when it isn't installed here."""
    try:
        return requires(package) or []
    except PackageNotFoundError as error:
        raise SystemExit(f"{package} isn't installed here, so what it needs isn't known; run `make bundle`") from error


def write_bundle(
    packages: Mapping[str, str], target: Target, folder: Path, *, part_bytes: int, is_whole: bool
) -> list[Path]:
    """Fetch, strip and archive these packages and the project into a new folder; returns the parts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch, "wheels")
        fetch(packages, target, wheels)
        build_project(wheels)
        found = sorted(wheels.glob("*.whl"))
        for wheel in found:
            if not is_whole:
                strip(wheel)
        pip = Path(scratch, "pip")
        pip.mkdir()
        shutil.copy(bundled_pip(), pip)
        parts = write_parts([*found, pip], folder, part_bytes)
    names = [parse_wheel_filename(wheel.name)[:2] for wheel in found]
    (folder / "PACKAGES").write_text("".join(f"{name}=={version}\n" for name, version in names))
    (folder / "PYTHON").write_text(f"{target.python}\n")
    for name in SHIPPED:
        shutil.copy(Path(__file__).with_name(name), folder)
    return parts


def bundled_pip() -> Path:
    """The pip that comes with this Python, as a wheel. Raises SystemExit where the system's packagers removed it."""
    found = sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    if not found:
        raise SystemExit("this Python has no wheel of pip in ensurepip; run with one from python.org, pyenv or uv")
    return found[-1]


if __name__ == "__main__":
    main()
