"""Hashes of API keys; the keys themselves are never stored."""

from __future__ import annotations

import hashlib


def key_hash(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()
