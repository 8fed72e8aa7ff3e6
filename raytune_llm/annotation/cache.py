"""A teacher's responses, kept by content: no request is sent twice, whichever job or data it came from.

    annotations/<hash of teacher and sampling>/teacher.json    the teacher and sampling, for the reader
    annotations/<hash of teacher and sampling>/<hash>.jsonl    the responses to one batch of requests

A batch is stored as a whole or not at all (storage.py), and is on disk when `add` returns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raytune_llm.annotation.teachers.base import Request, Response, Sampling
from raytune_llm.errors import InputError
from raytune_llm.stores.storage import open_storage


class AnswerCache:
    """One teacher's responses under one sampling, in a folder or URI."""

    def __init__(self, root: str) -> None:
        self._storage = open_storage(root)
        self.root = root

    @classmethod
    def of_teacher(cls, home: str, identity: dict[str, Any], sampling: Sampling) -> AnswerCache:
        """The cache of a teacher with this identity; teacher.json is written where it is new."""
        key = {"teacher": identity, "sampling": asdict(sampling)}
        content = json.dumps(key, sort_keys=True, ensure_ascii=False)
        cache = cls(f"{home}/annotations/{digest(content)[:16]}")
        if not cache._storage.exists("teacher.json"):
            cache._storage.write("teacher.json", json.dumps(key, indent=2, ensure_ascii=False).encode())
        return cache

    def read(self) -> dict[Request, Response]:
        """All responses. Raises InputError naming a damaged file."""
        found: dict[Request, Response] = {}
        for name in self._storage.files(""):
            if name.endswith(".jsonl"):
                found |= self._read_batch(name)
        return found

    def batch(self, requests: Sequence[Request]) -> list[Response] | None:
        """The responses to exactly this batch, None when there are none. Raises InputError naming a damaged file."""
        name = _batch_name(requests)
        if not self._storage.exists(name):
            return None
        found = self._read_batch(name)
        return [found[request] for request in requests]

    def add(self, requests: Sequence[Request], responses: Sequence[Response], teacher: str) -> None:
        """Store the responses to a batch."""
        rows = [
            {"prompt_hash": digest(request.prompt), "teacher": teacher, **asdict(request), **asdict(response)}
            for request, response in zip(requests, responses, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._storage.write(_batch_name(requests), lines.encode())

    def _read_batch(self, name: str) -> dict[Request, Response]:
        found = {}
        for number, line in enumerate(self._storage.read(name).decode().rstrip("\n").split("\n"), start=1):
            try:
                row = json.loads(line)
                response = Response(**{key: row[key] for key in Response.__slots__})
                found[Request(row["prompt"], row["sample"])] = response
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.root}/{name}:{number} is damaged ({error}); remove the file to send its requests again"
                ) from error
        return found


def digest(text: str) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _batch_name(requests: Sequence[Request]) -> str:
    lines = (f"{digest(request.prompt)}:{request.sample}" for request in requests)
    return f"{digest(chr(10).join(lines))[:32]}.jsonl"
