"""Uploads: a form's file goes through temporary files to the store, piece by piece; it is never whole in memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from raytune_llm.data.reading.sources import COMPRESSED, SUFFIXES, format_of
from raytune_llm.service.api.backend import Backend
from raytune_llm.service.api.bounds import file_too_large
from raytune_llm.service.records import StoredFile, new_id
from raytune_llm.serving.api.errors import ApiError, invalid

FINE_TUNE = "fine-tune"
BINARY = (".parquet", ".arrow", ".feather")
CHUNK_BYTES = 1 << 20
MAX_NAME = 255
"""Characters of a file's name."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_form(request: Request) -> None:
    """Raises ApiError before anything is read of a body that is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise invalid("send the file as multipart/form-data, with the fields file and purpose", param="file")


def read_form(form: FormData) -> tuple[UploadFile, str]:
    """The upload and its name. Raises ApiError for fields that are missing or not supported."""
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise invalid("missing required parameter: file", param="file", code="missing_required_parameter")
    if not purpose:
        raise invalid("missing required parameter: purpose", param="purpose", code="missing_required_parameter")
    if purpose != FINE_TUNE:
        raise invalid(f"purpose={purpose} is not offered here; allowed: {FINE_TUNE}", param="purpose")
    for name in form:
        if name.startswith("expires_after"):
            text = "expires_after is not supported: files are kept until they are deleted"
            raise invalid(text, param="expires_after", code="unsupported_parameter")
        if name not in ("file", "purpose"):
            raise invalid(f"unknown parameter: {name}", param=name, code="unknown_parameter")
    filename = re.split(r"[/\\]", upload.filename or "")[-1]
    if not filename or len(filename) > MAX_NAME or UNPRINTABLE.search(filename):
        raise invalid(f"the file's name must have 1 to {MAX_NAME} printable characters", param="file")
    return upload, filename


def extension_of(filename: str) -> str:
    """The ending that tells how a file is read, by a client's name for it; .jsonl for one of no known format."""
    suffix, last = format_of(filename), Path(filename).suffix.lower()
    if suffix not in SUFFIXES:
        return ".jsonl"
    return suffix + last if last in COMPRESSED else suffix


def keep_upload(backend: Backend, owner: str, source: IO[bytes], filename: str) -> StoredFile:
    """Store what was uploaded. Raises ApiError for a file that is empty, too large, or more than its key may keep."""
    id, extension = new_id("file"), extension_of(filename)
    with tempfile.NamedTemporaryFile(prefix="raytune-llm-upload-") as target:
        num_bytes, num_lines, sha256 = _copied(source, target, backend.service.max_file_bytes)
        if not num_bytes:
            raise invalid("the file is empty", param="file")
        file = StoredFile(
            id=id,
            owner=owner,
            filename=filename,
            purpose=FINE_TUNE,
            num_bytes=num_bytes,
            num_lines=num_lines if extension not in BINARY and not extension.endswith(COMPRESSED) else 0,
            sha256=sha256,
            created=int(time.time()),
            location=backend.store.file_location(id, extension),
        )
        with _room(backend, owner, num_bytes):
            _add(backend, file, Path(target.name))
    return file


def _copied(source: IO[bytes], target: IO[bytes], max_bytes: int) -> tuple[int, int, str]:
    """Bytes, lines and SHA-256 of what was copied."""
    num_bytes, num_lines, last, digest = 0, 0, b"\n", hashlib.sha256()
    source.seek(0)
    while piece := source.read(CHUNK_BYTES):
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise file_too_large(max_bytes)
        num_lines += piece.count(b"\n")
        last = piece[-1:]
        digest.update(piece)
        target.write(piece)
    target.flush()
    return num_bytes, num_lines + (last != b"\n"), digest.hexdigest()


@contextlib.contextmanager
def _room(backend: Backend, owner: str, num_bytes: int) -> Iterator[None]:
    """Room for so many bytes, reserved while they are stored. Raises ApiError when there is not so much."""
    most = backend.service.max_stored_bytes_per_key
    with backend.lock:
        stored = sum(file.num_bytes for file in backend.files(owner)) + backend.arriving[owner]
        if stored + num_bytes > most:
            message = f"files of this key have {stored} of {most} bytes; {num_bytes} more don't fit: delete some first"
            raise ApiError(400, message, code="insufficient_quota", param="file")
        backend.arriving[owner] += num_bytes
    try:
        yield
    finally:
        with backend.lock:
            backend.arriving[owner] -= num_bytes


@contextlib.contextmanager
def space_left() -> Iterator[None]:
    """Raises ApiError for a full disk, be it that of the store or that of temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ApiError(507, "the service has no space left for this file", code="insufficient_storage") from error
        raise


def _add(backend: Backend, file: StoredFile, content: Path) -> None:
    """Nothing of a file that wasn't stored stays."""
    try:
        backend.store.add_file(file, content)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            backend.store.delete_file(file.id)
        raise
