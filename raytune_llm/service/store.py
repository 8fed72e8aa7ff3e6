"""The service's state as files in its home: no database, any storage.

    service/files/ID/content.jsonl, file.json     a file; it exists if and only if its file.json does, written last
    service/jobs/ID/request.json                  a job as it was asked for, written once; it exists if this does
    service/jobs/ID/status.json                   how far it is, written by the controller alone, first before that
    service/jobs/ID/events.json                   what happened to it, likewise
    service/jobs/ID/check/report.json             what the data check found in its files
    service/jobs/ID/logs/NAME.txt                 what a command printed that failed

Ids are made here (records.new_id), and one that isn't of that form names nothing: no client's text becomes a path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pydantic

from raytune_llm.service.records import Event, Status, StoredFile, TuningRequest
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage

ROOT = "service"
ID = re.compile(r"(file|ftjob)-[0-9a-f]{24}")

_FILE, _REQUEST = pydantic.TypeAdapter(StoredFile), pydantic.TypeAdapter(TuningRequest)
_STATUS, _EVENTS = pydantic.TypeAdapter(Status), pydantic.TypeAdapter(tuple[Event, ...])


class Store:
    """Files and jobs below a home: a local path or URI. Every write is whole or not at all."""

    def __init__(self, home: str) -> None:
        self._storage = open_storage(home)
        self.home = self._storage.root
        self._files: dict[str, StoredFile] = {}
        """Those that were read before: a file never changes, and this service alone adds and deletes any."""
        self._deleted: set[str] = set()

    def add_file(self, file: StoredFile, content: Path) -> None:
        """Keep a local file's content at file.location, then the file itself."""
        self._storage.upload(content, file.location.removeprefix(f"{self.home}/"))
        self._storage.write(f"{_folder(file.id)}/file.json", to_json(file).encode())
        self._deleted.discard(file.id)

    def file_location(self, id: str, extension: str) -> str:
        """Where the content of a new file is kept; extension: with its dot, of a known format."""
        return f"{self.home}/{_folder(id)}/content{extension}"

    def file(self, id: str) -> StoredFile | None:
        """None when there is no such file."""
        if id not in self._files and (content := self._read(id, "file", "file.json")) is not None:
            self._files[id] = _FILE.validate_json(content)
        return None if id in self._deleted else self._files.get(id)

    def files(self) -> list[StoredFile]:
        """All files, the oldest first."""
        found = [file for file in map(self.file, self._storage.folders(f"{ROOT}/files")) if file is not None]
        return sorted(found, key=lambda file: (file.created, file.id))

    def delete_file(self, id: str) -> None:
        """Remove a file that exists."""
        self._storage.remove(_folder(id))
        self._deleted.add(id)  # also for who is reading it now
        self._files.pop(id, None)

    def delete_partial_files(self) -> None:
        """Remove what a service that was killed has left of files that were on their way. Only for the one service of
        a home, before it takes files."""
        folder = f"{ROOT}/files"
        whole = {path.partition("/")[0] for path in self._storage.files(folder) if path.endswith("/file.json")}
        for id in self._storage.folders(folder):
            if id not in whole and ID.fullmatch(id):
                self.delete_file(id)

    def content(self, file: StoredFile) -> bytes:
        """A file's whole content."""
        return self._storage.read(file.location.removeprefix(f"{self.home}/"))

    def local_copy(self, file: StoredFile, folder: Path) -> Path:
        """A file's content on this machine: where it is kept, or downloaded into a folder."""
        if is_local(self.home):
            return Path(file.location)
        target = folder / file.id
        self._storage.download(file.location.removeprefix(f"{self.home}/"), target)
        return target

    def add_job(self, request: TuningRequest) -> None:
        """Keep a new job, whose first status is stored already."""
        self._storage.write(f"{_folder(request.id)}/request.json", to_json(request).encode())

    def request(self, id: str) -> TuningRequest | None:
        """None when there is no such job."""
        content = self._read(id, "ftjob", "request.json")
        return None if content is None else _REQUEST.validate_json(content)

    def requests(self) -> list[TuningRequest]:
        """All jobs, the oldest first."""
        found = [one for one in map(self.request, self._storage.folders(f"{ROOT}/jobs")) if one is not None]
        return sorted(found, key=lambda request: (request.created, request.id))

    def status(self, id: str) -> Status | None:
        """None before the first was written."""
        content = self._read(id, "ftjob", "status.json")
        return None if content is None else _STATUS.validate_json(content)

    def write_status(self, id: str, status: Status) -> None:
        self._storage.write(f"{_folder(id)}/status.json", to_json(status).encode())

    def events(self, id: str) -> tuple[Event, ...]:
        """In the order in which they happened."""
        content = self._read(id, "ftjob", "events.json")
        return () if content is None else _EVENTS.validate_json(content)

    def write_events(self, id: str, events: Sequence[Event]) -> None:
        self._storage.write(f"{_folder(id)}/events.json", to_json(list(events)).encode())

    def write_log(self, id: str, name: str, text: str) -> None:
        """Keep what a command of a job printed."""
        self._storage.write(f"{_folder(id)}/logs/{name}.txt", text.encode(errors="replace"))

    def check_folder(self, id: str) -> str:
        """Where the data check of a job writes its report."""
        return f"{self.home}/{_folder(id)}/check"

    def _read(self, id: str, kind: str, name: str) -> bytes | None:
        match = ID.fullmatch(id)
        if match is None or match[1] != kind:
            return None
        try:
            return self._storage.read(f"{_folder(id)}/{name}")
        except FileNotFoundError:
            return None


def _folder(id: str) -> str:
    match = ID.fullmatch(id)
    assert match is not None, id
    return f"{ROOT}/{'files' if match[1] == 'file' else 'jobs'}/{id}"
