"""What a client's script reports: one JSON line for each thing that it asked of the endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

URL, MODEL, BASE = os.environ["URL"], os.environ["MODEL"], os.environ["BASE"]
"""Base URL ending in /v1; a version tuned on plain pairs; the base's id."""
CHAT = os.environ["CHAT"]
"""A version tuned on chats, whose template takes tools."""
TOKENIZER = os.environ["TOKENIZER"]
"""Folder of the base."""
KEY = "none"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def asked(what: str, ask: Callable[[], object]) -> None:
    """Report whether `ask` raised nothing and returned something true."""
    try:
        passed, detail = bool(ask()), ""
    except Exception as error:  # whatever a client makes of an answer
        passed, detail = False, f"{type(error).__name__}: {error}"
    print("RESULT " + json.dumps({"asked": what, "passed": passed, "detail": detail[:600]}), flush=True)
