"""Commands to a sweep, carried out by its driver: each once, whatever is killed when.

What a command changes is on disk before it is answered, and is found there when it is read again: a clone names the
command that asked for it, an extension has its own file, and so has which trials are to stop; a pause and a
cancel are files, which a resume and the sweep's end remove.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytune_llm.data.findings import many
from raytune_llm.errors import InputError
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.backends.base import without_base
from raytune_llm.sweep.control import Command, Commands
from raytune_llm.sweep.plan import BASE, SIZE, STEPS, Plan, check_axis, make_plan
from raytune_llm.sweep.queue import TrialQueue
from raytune_llm.sweep.space import axes_of
from raytune_llm.sweep.trial_store import Ending, Origin, TrialRecord
from raytune_llm.training import checkpoints
from raytune_llm.training.config import TrialConfig

PAUSED, CANCELLED, SPACES, STOPS = "paused", "cancelled", "spaces", "stops"
COPY_TRIES = 3
"""To copy a checkpoint that is replaced meanwhile."""


@dataclass
class CommandDesk:
    """Takes a sweep's commands."""

    commands: Commands
    config: TrialConfig
    queue: TrialQueue
    axes: dict[str, Axis]
    """Of the space, extensions included."""
    fits: Callable[[Plan], bool]
    """Whether what runs now can run trials of a plan."""
    to_stop: set[str] = field(default_factory=set)
    """Running trials that are to stop at their next report."""
    _next_at: float = -math.inf

    def __post_init__(self) -> None:
        store, stops = self.queue.proposals.store, open_storage(f"{self.config.run_dir}/control/{STOPS}")
        asked = {id for name in stops.files("") for id in json.loads(stops.read(name))}
        self.to_stop |= asked & store.records.keys() - store.endings.keys()

    def carry_out(self, now: float) -> str | None:
        """Carry out all that has been asked for; how the sweep is to be drained for it (a value of steering.Drain), or
        None."""
        if now < self._next_at:
            return None
        self._next_at = now + self.commands.period_seconds
        drain = None
        for command in self.commands.pending():
            try:
                text, asked = getattr(self, f"_{command.action.value}")(command)
            except InputError as error:
                self.commands.answer(command, done=False, text=str(error))
                continue
            except Exception as error:  # of one command, which must not end the sweep, now or at its next start
                logging.getLogger(__name__).exception("command %s", command.id)
                self.commands.answer(command, done=False, text=f"it failed: {type(error).__name__}: {error}")
                continue
            self.commands.answer(command, done=True, text=text)
            print(f"command {command.action.value}: {text}", flush=True)
            drain = asked or drain
        return drain

    def _stop(self, command: Command) -> tuple[str, str | None]:
        store, stops = self.queue.proposals.store, open_storage(f"{self.config.run_dir}/control/{STOPS}")
        name = f"{command.id}.json"
        if not stops.exists(name):
            stops.write(name, to_json(self._chosen(command)).encode())
        ids = [id for id in json.loads(stops.read(name)) if id not in store.endings]
        for id in ids:
            if id in self.queue.live:
                self.to_stop.add(id)
            else:
                self.queue.withdraw(id)
                store.end(id, Ending(why="stopped", checkpoint=None))
        if not ids:
            nothing = f"{command.trial} has ended already" if command.trial else "no running trial is worse than that"
            return nothing, None
        return f"{', '.join(ids)} stopped after one more report", None

    def _chosen(self, command: Command) -> list[str]:
        """The trials that a command to stop means."""
        return self._worse_than(command.quantile) if command.trial is None else [self._record(command.trial).id]

    def _worse_than(self, quantile: float | None) -> list[str]:
        """Running trials whose best is worse than that quantile of all trials' bests."""
        if quantile is None or not 0 <= quantile < 1:
            raise InputError(f"quantile={quantile} is not allowed; allowed: 0 ≤ quantile < 1, or trial=ID")
        costs = self.queue.proposals.costs
        if not costs:
            raise InputError("no trial has reported yet, so there is no quantile; try again later")
        ranked = sorted(costs.values())
        bound = ranked[min(len(ranked) - 1, math.floor(quantile * len(ranked)))]
        return [id for id in self.queue.live if costs.get(id, -math.inf) > bound]

    def _clone(self, command: Command) -> tuple[str, str | None]:
        proposals = self.queue.proposals
        made = proposals.store.of_command(command.id)
        if made is None:
            self._check_takes_more()
            parent = self._record(str(command.trial))
            values = self._clone_values(parent, command.values)
            id, step = proposals.store.next_id, self._copy(parent, proposals.store.next_id)
            made = proposals.store.create(values, Origin.clone, parent=parent.id, command=command.id)
            assert made.id == id
            self.queue.add(made)
            how = f"from step {step} of {parent.id}" if step else f"from the start: {parent.id} has no saved state"
            return f"{made.id} continues {how}", None
        return f"{made.id} was made from {made.parent}", None

    def _clone_values(self, parent: TrialRecord, values: dict[str, Any]) -> dict[str, Any]:
        """The clone's point. Raises InputError for values that no trial may have."""
        for key in (BASE, SIZE):
            if key in values and values[key] != parent.values.get(key, values[key]):
                raise InputError(f"{key} is what a clone shares with its parent; leave it out, or extend the space")
        for key in values:
            check_axis(self.config, key)
        wanted = parent.values | values
        self._checked(self.queue.proposals.plan.values(without_base(wanted)))
        return wanted

    def _copy(self, parent: TrialRecord, id: str) -> int:
        """Copy the parent's newest checkpoint, if a trial can resume from it; its step, 0 where nothing was copied."""
        source, target = (f"{self.config.run_dir}/trials/{one}" for one in (parent.id, id))
        for _ in range(COPY_TRIES):
            try:
                return checkpoints.copy_newest(source, target)
            except FileNotFoundError:
                continue
        raise InputError(f"{parent.id}'s checkpoint could not be copied: it is replaced all the time; try again")

    def _check_takes_more(self) -> None:
        """Refuse further trials of a sweep whose own are over. Raises InputError."""
        if self.queue.proposals.points:
            raise InputError(
                "the trials of the space are over, and the first of them are trained again; when the run has ended, "
                "the same command with run= and sweep.extend=true continues it with a larger sweep.space"
            )

    def _extend(self, command: Command) -> tuple[str, str | None]:
        self._check_takes_more()
        axes = extended(self.axes, [command.space])
        plan = make_plan(self.config, axes, self.queue.proposals.plan.first)
        self._check(plan)
        spaces = open_storage(f"{self.config.run_dir}/control/{SPACES}")
        spaces.write(f"{command.id}.json", to_json(command.space).encode())
        self.axes, self.queue.proposals.plan, self.queue.is_exhausted = axes, plan, False
        to_come = many(self.queue.proposals.num_left(), "trial")
        text = f"the space has {', '.join(axes)}; up to {to_come} to come"
        return (text, None) if self.fits(plan) else (f"{text}; running ones restart from their checkpoints", "changed")

    def _check(self, plan: Plan) -> None:
        """Refuse a plan with values that no trial can have. Raises InputError."""
        self.queue.proposals.search.check(plan)
        for key, axis in plan.axes.items():
            for value in axis.candidates:
                self._checked({key: value})
        for steps in plan.milestones:
            self._checked({STEPS: steps})
        for size in plan.candidates(SIZE):
            self.config.adapter.check(size, self.config.model.facts)

    def _checked(self, values: Mapping[str, Any]) -> None:
        """Raise InputError for values that a trial's config can't have."""
        try:
            self.config.with_values(values)
        except TypeError as error:  # a text where a number is compared
            shown = ", ".join(f"{key}={value}" for key, value in values.items())
            raise InputError(f"{shown} is not allowed: {error}") from error

    def _pause(self, command: Command) -> tuple[str, str | None]:
        open_storage(f"{self.config.run_dir}/control").write(PAUSED, b"")
        return "trials report once more, then the sweep waits", "paused"

    def _resume(self, command: Command) -> tuple[str, str | None]:
        resume(self.config.run_dir)
        return "the sweep continues", None

    def _cancel(self, command: Command) -> tuple[str, str | None]:
        open_storage(f"{self.config.run_dir}/control").write(CANCELLED, b"")
        resume(self.config.run_dir)
        return "trials report once more, then the sweep ends without a winner", "cancelled"

    def _record(self, id: str) -> TrialRecord:
        records = self.queue.proposals.store.records
        if id not in records:
            raise InputError(f"trial={id} is none of this sweep; it has {', '.join(records)}")
        return records[id]


def is_paused(run_dir: str) -> bool:
    """Whether a sweep waits to be resumed."""
    return open_storage(f"{run_dir}/control").exists(PAUSED)


def is_cancelled(run_dir: str) -> bool:
    """Whether a sweep is to end, and hasn't yet."""
    return open_storage(f"{run_dir}/control").exists(CANCELLED)


def forget_cancel(run_dir: str) -> None:
    """Note that a cancelled sweep has ended, so that its next start resumes it."""
    open_storage(f"{run_dir}/control").delete(CANCELLED)


def resume(run_dir: str) -> None:
    """Let a paused sweep continue."""
    open_storage(f"{run_dir}/control").delete(PAUSED)


def extensions(run_dir: str) -> list[dict[str, Any]]:
    """The spaces that commands have added, in their order."""
    storage = open_storage(f"{run_dir}/control/{SPACES}")
    return [json.loads(storage.read(name)) for name in storage.files("")]


def extended(axes: Mapping[str, Axis], spaces: Sequence[Mapping[str, Any]]) -> dict[str, Axis]:
    """Axes with further spaces: choices join those of an axis, anything else replaces it. Raises InputError."""
    found = dict(axes)
    for space in spaces:
        for key, axis in axes_of(space):
            before = found.get(key)
            if before is not None and before.choices and axis.choices:
                choices = tuple(dict.fromkeys((*before.choices, *axis.choices)))
                axis = replace(axis, choices=choices, when=axis.when or before.when)
            found[key] = axis
    return found
