"""Join the parts next to this file, check them, and install the wheels in them, without internet.

    sh install.sh                    into the running Python's environment (a virtual environment, say)
    sh install.sh --target FOLDER    into a folder; set PYTHONPATH to it

Needs Python's standard library alone; pip travels along.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Joined(io.RawIOBase):
    """The parts as one file to read."""

    def __init__(self, paths):
        self._files = iter([path.open("rb") for path in paths])
        self._file = next(self._files)

    def readable(self):
        return True

    def readinto(self, buffer):
        while True:
            count = self._file.readinto(buffer)
            if count:
                return count
            following = next(self._files, None)
            if following is None:
                return 0
            self._file = following


def parts():
    """The parts in order. Raises SystemExit when one is missing or damaged."""
    found = []
    for line in (HERE / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        path = HERE / name
        if not path.is_file():
            raise SystemExit(f"{name} is missing in {HERE}; copy all parts here")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise SystemExit(f"{name} is damaged: its SHA-256 is not that of SHA256SUMS; copy it again")
        found.append(path)
    return found


def check_python():
    """Raise SystemExit unless this is the Python that the wheels are for."""
    wanted = (HERE / "PYTHON").read_text().strip()
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if running != wanted:
        raise SystemExit(f"this bundle is for Python {wanted}, and {sys.executable} is {running}; name it by PYTHON=…")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path)
    target = parser.parse_args().target
    check_python()
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BufferedReader(Joined(parts())), mode="r|xz") as archive:
            for member in archive:
                archive.extract(member, scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        wheels = sorted(map(str, Path(scratch).glob("*.whl")))
        (pip,) = Path(scratch).glob("pip/pip-*.whl")
        command = [sys.executable, f"{pip}/pip", "--isolated", "--disable-pip-version-check", "install", "--no-index"]
        command += ["--no-deps", "--quiet", "--no-warn-script-location"]
        command += ["--upgrade", "--target", str(target)] if target else []
        subprocess.run([*command, *wheels], check=True)
    where = f"PYTHONPATH={target.resolve()} " if target else ""
    print(f"installed {len(wheels)} packages; check: {where}{sys.executable} {HERE / 'check.py'}")


if __name__ == "__main__":
    main()
