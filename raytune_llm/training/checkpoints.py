"""A trial's checkpoints below its own folder, local or remote: written whole, the newest kept.

DIRECTORY/checkpoint_000050/{best/…, state/…, history.json}     history.json is written last
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from raytune_llm.stores.storage import is_local, open_storage
from raytune_llm.training.history import FILE

PREFIX = "checkpoint_"


def save(directory: str, step: int, folder: Path) -> str:
    """Store a local folder as the checkpoint of a step and remove the older ones; its path or URI."""
    name = f"{PREFIX}{step:06d}"
    if is_local(directory):
        root = Path(directory.removeprefix("file://"))
        root.mkdir(parents=True, exist_ok=True)
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        shutil.rmtree(root / name, ignore_errors=True)
        partial.rename(root / name)
    else:
        storage = open_storage(directory)
        files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name == FILE)
        for file in files:
            storage.upload(file, f"{name}/{file.relative_to(folder).as_posix()}")
    for older in stored(directory):
        if older != name:
            open_storage(directory).remove(older)
    return f"{directory}/{name}"


def latest(directory: str) -> str | None:
    """Path or URI of the newest whole checkpoint."""
    found = stored(directory)
    return f"{directory}/{found[-1]}" if found else None


def stored(directory: str) -> list[str]:
    """Names of the whole checkpoints, oldest first."""
    storage = open_storage(directory)
    names = [name for name in storage.folders("") if name.startswith(PREFIX)]
    return sorted(name for name in names if storage.exists(f"{name}/{FILE}"))


def fetch(checkpoint: str) -> tempfile.TemporaryDirectory[str]:
    """A checkpoint's files in a local temporary folder."""
    storage = open_storage(checkpoint)
    scratch = tempfile.TemporaryDirectory(prefix="checkpoint-")
    for name in storage.files(""):
        target = Path(scratch.name, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download(name, target)
    return scratch
