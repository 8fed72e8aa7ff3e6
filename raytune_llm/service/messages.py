"""What a command printed when it failed, as its job's owner may read it."""

from __future__ import annotations

import re

from raytune_llm.service.records import TuningRequest
from raytune_llm.serving.api.errors import PATH

BEGINNING = "error: "
LONGEST = 2000
"""Characters of a message."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAY_PREFIX = re.compile(r"^\([^()]*(?:pid=\d+|autoscaler)[^()]*\) ")
OURS = re.compile(r"^Correct them, then run jobs/check\.py .*$", re.MULTILINE)
"""Advice for who runs commands, not for who calls the service."""


def last_error(output: str) -> str | None:
    """The last line that begins with 'error: ', without that, and the indented lines that follow; None where there is
    none."""
    lines = [RAY_PREFIX.sub("", ANSI.sub("", line)) for line in output.splitlines()]
    first = max((i for i, line in enumerate(lines) if line.startswith(BEGINNING)), default=None)
    if first is None:
        return None
    found = [lines[first].removeprefix(BEGINNING)]
    for line in lines[first + 1 :]:
        if not line.startswith(("  ", "verdict: ")):
            break
        found.append(line)
    return "\n".join(found)


def for_owner(message: str, request: TuningRequest) -> str:
    """A message in the client's terms: its names of the files in place of their locations and our keys, no other
    path, and not too long."""
    names = {"data.train": "training_file", "data.eval": "validation_file"}
    for data in (request.training, request.validation):
        if data is not None:
            names[data.location] = data.name
    for location in sorted(names, key=len, reverse=True):
        message = message.replace(location, names[location])
    message = PATH.sub("", OURS.sub("", message)).strip()
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 2]} …"


def param_of(message: str, request: TuningRequest) -> str:
    """Which of the job's files a message for its owner is about."""
    validation = request.validation
    names = () if validation is None or validation.name == request.training.name else (validation.name,)
    at = [message.find(name) for name in (*names, "validation_file") if name in message]
    first = message.find(request.training.name)
    is_validation = bool(at) and (first < 0 or min(at) < first)
    return "validation_file" if is_validation else "training_file"
