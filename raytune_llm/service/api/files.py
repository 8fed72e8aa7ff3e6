"""/v1/files: what jobs train on, and the results that they leave."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from raytune_llm.service.api.backend import Backend, BackendOf, Owner
from raytune_llm.service.api.paging import After, Item, Page, page_of
from raytune_llm.service.api.uploads import FINE_TUNE, check_form, keep_upload, read_form, space_left
from raytune_llm.service.records import StoredFile
from raytune_llm.serving.api.errors import ApiError

router = APIRouter(tags=["files"])
CHUNK_BYTES = 1 << 18
FIELD_BYTES = 4096
"""Of a form's field that is no file."""

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [FINE_TUNE]},
                    },
                }
            }
        },
    }
}


class FileObject(Item):
    """A file of its owner."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time, seconds.")
    filename: str
    purpose: str = Field(description="fine-tune, or fine-tune-results of a job.")
    status: Literal["processed"] = "processed"
    status_details: None = None
    expires_at: None = None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("/v1/files", summary="Upload a file", openapi_extra=FORM)
async def create_file(request: Request, backend: BackendOf, owner: Owner) -> FileObject:
    """Records to train or validate on: JSON lines, JSON, CSV, TSV, Parquet or Arrow, also compressed."""
    check_form(request)
    with space_left():
        async with request.form(max_files=1, max_fields=8, max_part_size=FIELD_BYTES) as form:
            upload, filename = read_form(form)
            return file_object(await run_in_threadpool(keep_upload, backend, owner, upload.file, filename))


@router.get("/v1/files", summary="List files")
def list_files(
    backend: BackendOf,
    owner: Owner,
    purpose: Annotated[str | None, Query(description="Only those of this purpose.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By time: the oldest or newest first.")] = "desc",
) -> Page[FileObject]:
    files = [file for file in backend.files(owner) if purpose in (None, "", file.purpose)]
    return page_of([file_object(file) for file in (files if order == "asc" else files[::-1])], after, limit)


@router.get("/v1/files/{file_id}", summary="A file's facts")
def retrieve_file(file_id: str, backend: BackendOf, owner: Owner) -> FileObject:
    return file_object(_existing(backend, file_id, owner))


@router.get(
    "/v1/files/{file_id}/content",
    summary="A file's content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def file_content(file_id: str, backend: BackendOf, owner: Owner) -> StreamingResponse:
    file = _existing(backend, file_id, owner)
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "content-length": str(file.num_bytes),
    }
    return StreamingResponse(_pieces(backend, file), media_type="application/octet-stream", headers=headers)


@router.delete("/v1/files/{file_id}", summary="Delete a file")
def delete_file(file_id: str, backend: BackendOf, owner: Owner) -> FileDeleted:
    """A file that an unfinished job needs stays: 409."""
    with backend.lock:
        _existing(backend, file_id, owner)
        for job in backend.controller.jobs(owner):
            used = [data.name for data in (job.request.training, job.request.validation) if data is not None]
            if file_id in used and not job.status.state.is_final:
                message = f"{file_id} is used by {job.request.id}, which is {job.status.state.value}; cancel that first"
                raise ApiError(409, message, code="file_in_use", param="file_id")
        backend.store.delete_file(file_id)
    return FileDeleted(id=file_id)


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id, bytes=file.num_bytes, created_at=file.created, filename=file.filename, purpose=file.purpose
    )


def _existing(backend: Backend, id: str, owner: str) -> StoredFile:
    file = backend.file(id, owner)
    if file is None:
        raise ApiError(404, f"no such file: {id}", code="not_found", param="file_id")
    return file


def _pieces(backend: Backend, file: StoredFile) -> Iterator[bytes]:
    with (
        tempfile.TemporaryDirectory(prefix="raytune-llm-") as folder,
        backend.store.local_copy(file, Path(folder)).open("rb") as content,
    ):
        while piece := content.read(CHUNK_BYTES):
            yield piece
