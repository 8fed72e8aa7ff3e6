"""Commands to a running sweep as files in its run's storage: no port is opened, and any storage will do.

    control/commands/ID.json    written once, by whoever gives the command
    control/answers/ID.json     written once, by the sweep's driver, after it has carried the command out

A command is in effect once its file is whole, and stays so until it has its answer, whatever is killed in between: a
driver that dies after it has carried a command out, but before it has answered, is given the command again at its next
start. So each command must be carried out in a way that doing it again changes nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from raytune_llm.errors import first_line, require
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage

COMMANDS, ANSWERS = "commands", "answers"
LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 5.0
"""Time between two looks at a folder, and at an object store."""
WAIT_SECONDS = 0.5
"""Time between two looks for an answer."""


class Action(Enum):
    """What a running sweep can be asked to do."""

    stop = "stop"
    """One trial, or all below a quantile, after one more report."""
    clone = "clone"
    """A new trial from another one's checkpoint, with overrides."""
    extend = "extend"
    """Add to the space."""
    pause = "pause"
    """Trials report once more and wait; the sweep gives its devices back."""
    resume = "resume"
    cancel = "cancel"
    """End the sweep without a winner, after one more report of its trials."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command."""

    id: str
    """Sorts by the time it was given: time in nanoseconds (20 digits), '-', 8 random hex digits."""
    action: Action
    trial: str | None = None
    """For stop and clone."""
    quantile: float | None = None
    """For stop: all running trials whose best is worse than this quantile of all trials' bests (0 = the best)."""
    values: dict[str, Any] = field(default_factory=dict)
    """For clone: what differs from the trial, by dotted key."""
    space: dict[str, Any] = field(default_factory=dict)
    """For extend: nested keys as in sweep.space."""

    def __post_init__(self) -> None:
        """Raises InputError for what no sweep could carry out."""
        match self.action:
            case Action.stop:
                one = (self.trial is None) != (self.quantile is None)
                require(one, "trial", self.trial, "for action=stop one of trial=ID and quantile=NUMBER")
                inside = self.quantile is None or 0 <= self.quantile < 1
                require(inside, "quantile", self.quantile, "≥ 0 and < 1")
            case Action.clone:
                require(self.trial is not None, "trial", self.trial, "for action=clone a trial's id")
            case Action.extend:
                require(bool(self.space), "space", self.space, "for action=extend at least one key: space.KEY=[…]")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a command."""

    command: str
    done: bool
    """False where it was refused."""
    text: str


class Commands:
    """The commands of one run: its driver asks for `pending`, gives each an `answer`; anybody else may `send`."""

    def __init__(self, run_dir: str) -> None:
        """run_dir: path or URI."""
        self._storage = open_storage(f"{run_dir}/control")
        self.period_seconds = LOCAL_SECONDS if is_local(run_dir) else REMOTE_SECONDS
        """How often a driver should look."""
        self._pending: dict[str, Command] = {}
        self._answered: set[str] = set()
        """Ids, as far as they have been read."""
        self._unread: dict[str, bytes] = {}
        """Content of files that are no commands, or not yet: some storages show a file while it is written."""

    def send(
        self,
        action: Action,
        *,
        trial: str | None = None,
        quantile: float | None = None,
        values: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
    ) -> Command:
        """Give a command; it is in effect when this returns. Raises InputError for one that no sweep could carry
        out."""
        command = Command(
            id=f"{time.time_ns():020d}-{secrets.token_hex(4)}",
            action=action,
            trial=trial,
            quantile=quantile,
            values=dict(values or {}),
            space=dict(space or {}),
        )
        self._storage.write(f"{COMMANDS}/{command.id}.json", to_json(command, indent=2).encode())
        return command

    def answer_of(self, id: str) -> Answer | None:
        """What became of a command; None while it waits for the driver, or the answer isn't whole."""
        try:
            return Answer(**json.loads(self._storage.read(f"{ANSWERS}/{id}.json")))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def wait(self, id: str, timeout_seconds: float) -> Answer | None:
        """The answer to a command as soon as it is there; None when none came in time."""
        deadline = time.monotonic() + timeout_seconds
        while (answer := self.answer_of(id)) is None and time.monotonic() < deadline:
            time.sleep(WAIT_SECONDS)
        return answer

    def pending(self) -> list[Command]:
        """The commands that have no answer yet, in the order in which they were given; a file that is still no command
        at the second look is answered here. Costs a listing. A storage that fails ends no sweep: the next look may
        succeed."""
        try:
            self._look()
        except OSError as error:
            print(f"! the sweep's commands can't be read: {first_line(error)}", flush=True)
        return [self._pending[id] for id in sorted(self._pending)]

    def answer(self, command: Command, *, done: bool, text: str) -> None:
        """Note what became of a command; it is on disk when this returns. done: False where it is refused."""
        self._answer(command.id, done=done, text=text)

    def _answer(self, id: str, *, done: bool, text: str) -> None:
        self._storage.write(f"{ANSWERS}/{id}.json", to_json(Answer(command=id, done=done, text=text)).encode())
        self._pending.pop(id, None)
        self._answered.add(id)

    def _look(self) -> None:
        if not self._answered:
            self._answered = self._ids(ANSWERS)
        for id in sorted(self._ids(COMMANDS) - self._answered - self._pending.keys()):
            content = self._storage.read(f"{COMMANDS}/{id}.json")
            try:
                self._pending[id] = parse(id, content)
            except ValueError as error:
                if self._unread.get(id) == content:
                    self._answer(id, done=False, text=f"no command: {first_line(error)}")
                self._unread[id] = content

    def _ids(self, folder: str) -> set[str]:
        """Of all whole files in a folder; those being written begin with a dot."""
        names = [name for name in self._storage.files(folder) if name.endswith(".json") and not name.startswith(".")]
        return {name.removesuffix(".json") for name in names if "/" not in name}


def parse(id: str, content: bytes) -> Command:
    """The command in a file. Raises ValueError for anything else."""
    from pydantic import TypeAdapter, ValidationError

    try:
        command = TypeAdapter(Command).validate_json(content)
    except ValidationError as error:
        found = error.errors()[0]
        raise ValueError(": ".join([*map(str, found["loc"]), found["msg"]])) from error
    if command.id != id:
        raise ValueError(f"its id is {command.id}")
    return command
