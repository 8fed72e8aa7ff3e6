"""The answers a teacher has given: by content, so that nothing is asked twice, whichever job or data it came from.

    annotations/<hash of teacher and sampling>/asked.json      who was asked, and how, for whoever looks
    annotations/<hash of teacher and sampling>/<hash>.jsonl    the answers to one batch

A batch is put as a whole or not at all (storage.py), and is on disk when `add` returns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raytune_llm.annotation.teachers.base import Request, Response, Sampling
from raytune_llm.stores.storage import open_storage


class AnswerCache:
    """One teacher's answers under one sampling, in a folder or URI."""

    def __init__(self, root: str) -> None:
        self._storage = open_storage(root)
        self.root = root

    @classmethod
    def of(cls, home: str, identity: dict[str, Any], sampling: Sampling) -> AnswerCache:
        """Those of a teacher; its folder is made known by asked.json."""
        asked = {"teacher": identity, "sampling": asdict(sampling)}
        content = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        answers = cls(f"{home}/annotations/{digest(content)[:16]}")
        if not answers._storage.exists("asked.json"):
            answers._storage.write("asked.json", json.dumps(asked, indent=2, ensure_ascii=False).encode())
        return answers

    def read(self) -> dict[Request, Response]:
        """All of them. Raises ValueError naming the file that isn't as it was written."""
        found: dict[Request, Response] = {}
        for name in self._storage.files(""):
            if name.endswith(".jsonl"):
                found |= self._batch(name)
        return found

    def batch(self, asks: Sequence[Request]) -> list[Response] | None:
        """The answers to exactly this batch, None when it hasn't been answered."""
        name = f"{_batch_name(asks)}.jsonl"
        if not self._storage.exists(name):
            return None
        found = self._batch(name)
        return [found[ask] for ask in asks]

    def add(self, asks: Sequence[Request], said: Sequence[Response], teacher: str) -> None:
        """Keep the answers to a batch."""
        rows = [
            {"prompt_hash": digest(ask.prompt), "teacher": teacher, **asdict(ask), **asdict(answer)}
            for ask, answer in zip(asks, said, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._storage.write(f"{_batch_name(asks)}.jsonl", lines.encode())

    def _batch(self, name: str) -> dict[Request, Response]:
        found = {}
        for number, line in enumerate(self._storage.read(name).decode().rstrip("\n").split("\n"), start=1):
            try:
                row = json.loads(line)
                said = {key: row[key] for key in Response.__slots__}
                found[Request(row["prompt"], row["sample"])] = Response(**said)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.root}/{name}:{number} is not an answer as it was kept ({error}); remove the file, and its "
                    "questions are asked again"
                ) from error
        return found


def digest(text: str) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _batch_name(asks: Sequence[Request]) -> str:
    return digest("\n".join(f"{digest(ask.prompt)}:{ask.sample}" for ask in asks))[:32]
