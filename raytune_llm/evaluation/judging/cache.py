"""A judge's replies, kept by content: no request is sent twice, whichever run or data it came from.

    judgements/<hash of the judge>/judge.json       the judge, for the reader
    judgements/<hash of the judge>/<hash>.jsonl     some replies, each with the hash of its conversation

A file is written whole or not at all (stores/storage.py). Leaves out: removing old ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.models.openai_client import Completion, Messages
from raytune_llm.stores.storage import open_storage


class ReplyCache:
    """The replies of one judge, below a folder or URI."""

    def __init__(self, home: str, identity: Mapping[str, Any]) -> None:
        """identity: all that decides a reply besides the conversation."""
        content = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        self.root = f"{home}/judgements/{_digest(content)[:16]}"
        self._storage = open_storage(self.root)
        if not self._storage.exists("judge.json"):
            self._storage.write("judge.json", json.dumps(identity, indent=2, ensure_ascii=False).encode())

    def read(self) -> dict[str, Completion]:
        """All replies by the key of their conversation. Raises InputError naming a damaged file."""
        found: dict[str, Completion] = {}
        for name in self._storage.files(""):
            if not name.endswith(".jsonl"):
                continue
            try:
                for line in self._storage.read(name).decode().splitlines():
                    row = json.loads(line)
                    key = row.pop("key")
                    found[key] = Completion(**row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.root}/{name} is damaged ({error}); remove the file to send its requests again"
                ) from error
        return found

    def add(self, replies: Mapping[str, Completion]) -> None:
        """Store some replies."""
        if replies:
            rows = ({"key": key, **asdict(reply)} for key, reply in replies.items())
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            self._storage.write(f"{_digest(' '.join(replies))[:32]}.jsonl", lines.encode())


def key_of(messages: Messages) -> str:
    """Of a conversation: the same for the same content."""
    return _digest(json.dumps([dict(turn) for turn in messages], sort_keys=True, ensure_ascii=False))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
