"""A trial's checkpoints below its own folder, local or remote: written whole, the newest kept.

DIRECTORY/checkpoint_000050/{best/…, state/…, history.json}     history.json is written last

A checkpoint takes over what hasn't changed from the one before it, by hard links where the file system has them.
`state/` alone is replaced in place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raytune_llm.stores.storage import Storage, is_local, open_storage
from raytune_llm.training.history import FILE, stored_step

PREFIX = "checkpoint_"
BEST, STATE = "best", "state"


def publish(directory: str, step: int, write: Callable[[Path], None], *, keep: Sequence[str]) -> str:
    """Make the checkpoint of a step and remove the older ones; its path or URI. `write` fills a local folder with what
    is new in it; `keep`: the folders that it has in common with the newest checkpoint there is."""
    name, before = f"{PREFIX}{step:06d}", stored(directory)
    with _local_folder(directory, f".{name}.partial") as folder:
        write(folder)
        storage = open_storage(directory)
        made = folder.name if is_local(directory) else name
        for kept in keep if before else ():
            for file in storage.files(f"{before[-1]}/{kept}"):
                storage.copy(f"{before[-1]}/{kept}/{file}", f"{made}/{kept}/{file}")
        if is_local(directory):
            shutil.rmtree(folder.parent / name, ignore_errors=True)
            folder.rename(folder.parent / name)
        else:
            _upload(storage, folder, name)
    for older in before:
        if older != name:
            storage.remove(older)
    return f"{directory}/{name}"


def put_state(directory: str, write: Callable[[Path], None]) -> None:
    """Replace state/ of the newest checkpoint, file by file. `write` fills a local folder."""
    newest = stored(directory)[-1]
    with _local_folder(directory, f".{STATE}.partial") as folder:
        write(folder)
        if not is_local(directory):
            _upload(open_storage(directory), folder, f"{newest}/{STATE}")
            return
        target = folder.parent / newest / STATE
        target.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.replace(target / file.name)


def copy_newest(source: str, target: str) -> int:
    """Copy the newest checkpoint of a folder into another one, if a trial can resume from it; the step of its last
    report, 0 where there is none with a state/. Raises FileNotFoundError when it is replaced meanwhile."""
    newest = latest(source)
    files = [] if newest is None else open_storage(newest).files("")
    if newest is None or not any(file.startswith(f"{STATE}/") for file in files):
        return 0
    name = newest.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="copy-") as scratch:
        for file in files:
            Path(scratch, file).parent.mkdir(parents=True, exist_ok=True)
            open_storage(newest).download(file, Path(scratch, file))
        for file in sorted(files, key=lambda file: file == FILE):
            open_storage(f"{target}/{name}").write(file, Path(scratch, file).read_bytes())
    return stored_step(f"{target}/{name}")


@contextmanager
def open_state(checkpoint: str) -> Iterator[Path | None]:
    """state/ of a checkpoint as a local folder; None when it has none."""
    storage = open_storage(checkpoint)
    files = storage.files(STATE)
    if is_local(checkpoint) or not files:
        yield Path(storage.root, STATE) if files else None
        return
    with tempfile.TemporaryDirectory(prefix="state-") as scratch:
        for name in files:
            storage.download(f"{STATE}/{name}", Path(scratch, name))
        yield Path(scratch)


def latest(directory: str) -> str | None:
    """Path or URI of the newest whole checkpoint."""
    found = stored(directory)
    return f"{directory}/{found[-1]}" if found else None


def stored(directory: str) -> list[str]:
    """Names of the whole checkpoints, oldest first."""
    storage = open_storage(directory)
    names = [name for name in storage.folders("") if name.startswith(PREFIX)]
    return sorted(name for name in names if storage.exists(f"{name}/{FILE}"))


@contextmanager
def _local_folder(directory: str, name: str) -> Iterator[Path]:
    """An empty folder to write in: in a local directory itself, so that it can be renamed, else a temporary one. What
    a killed process left of such folders goes."""
    if is_local(directory):
        folder = Path(open_storage(directory).root, name)
        for left in folder.parent.glob(".*.partial"):
            shutil.rmtree(left)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
            yield Path(scratch)


def _upload(storage: Storage, folder: Path, name: str) -> None:
    """All files of a local folder, history.json last."""
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name == FILE)
    for file in files:
        storage.upload(file, f"{name}/{file.relative_to(folder).as_posix()}")
