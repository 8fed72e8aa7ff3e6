"""The command line that this process carries out, for reports: what was asked for, as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote

from raytune_llm.jobs.help import called

SECRET = re.compile(r"(?:^|[._])(?:api_key|secret|password|access_token|hub_token)$|\.token$")
"""Keys whose values are left out of what is shown."""

_noted: tuple[str, tuple[str, ...]] | None = None


def note(command: str, arguments: Sequence[str]) -> None:
    """Note the command of this process, before anything is made of its arguments."""
    global _noted
    _noted = command, tuple(arguments)


def command_line(**more: str) -> str | None:
    """The command for a shell, with values of further keys in place of those given; None where none was noted, as in
    tests and programs that build jobs by themselves."""
    if _noted is None:
        return None
    command, arguments = _noted
    kept = [argument for argument in arguments if _key(argument) not in more]
    given = [*map(_without_secret, kept), *(f"{key}={value}" for key, value in more.items())]
    return " ".join([called(command), *map(quote, given)])


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _without_secret(argument: str) -> str:
    return f"{argument.partition('=')[0]}=…" if SECRET.search(_key(argument)) else argument
