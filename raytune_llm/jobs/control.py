"""Runs and their trials from another shell or machine: what is read from the runs' files, and what is asked of a
running sweep by files of its run, so that no port is opened."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

from raytune_llm.errors import InputError, check_name
from raytune_llm.jobs.actions import ControlAction
from raytune_llm.jobs.cancelling import cancel_process
from raytune_llm.jobs.control_tables import headline, jobs_table, objective_of, trial_text, trials_table
from raytune_llm.jobs.schema import ControlJob
from raytune_llm.stores.components import unknown_key
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.axes import flat
from raytune_llm.sweep.control import Action, Commands
from raytune_llm.sweep.plan import check_sweepable
from raytune_llm.sweep.space import axes_of
from raytune_llm.sweep.status import Best, RunStatus, State, read_status
from raytune_llm.sweep.trial_views import READERS, TrialView, read_curve, read_trials
from raytune_llm.training.config import Scaling, Tuning

KNOWN_GROUPS = {"tuning": Tuning, "scaling": Scaling}
"""Groups whose keys are the same whatever is chosen."""


@dataclass(frozen=True)
class Run:
    """A run that has been found."""

    dir: str
    status: RunStatus

    @property
    def label(self) -> str:
        return f"{self.status.name}/{self.status.run}"

    @property
    def is_steered(self) -> bool:
        """Whether it carries commands out: a sweep whose trials run, or are paused."""
        return self.status.command == "sweep" and self.status.state in (State.running, State.paused)


def run_control(job: ControlJob) -> int:
    """Do what action says and print it; 1 where a command was refused or not answered in time. Raises InputError."""
    if job.asked is ControlAction.jobs:
        print(runs_text(job))
        return 0
    run = find_run(job)
    match job.asked:
        case ControlAction.list:
            trials = read_trials(run.dir, run.status.metric)
            print(f"{headline(run.status, time.time())}\n\n{trials_table(trials, run.status, time.time())}")
        case ControlAction.show:
            print(trial_text(find_trial(run, job.trial), run.status, time.time()))
        case _:
            refuse_unless_alive(run, job.asked)
            if job.asked is not ControlAction.cancel or run.is_steered:
                return send(job, run)
            print(cancel_process(run.dir, run.status, job))
    return 0


def runs_text(job: ControlJob) -> str:
    """All runs below home, or those of a name."""
    places = [f"{name}/{run}" for name, run in all_runs(job) if job.name in (None, name)]
    with ThreadPoolExecutor(READERS) as executor:
        read = executor.map(lambda place: seen(f"{job.home}/runs/{place}"), places)
        runs = [status for status in read if status is not None]
    if not runs:
        return f"no runs{f' of {job.name}' if job.name else ''} below {job.home}/runs"
    return jobs_table(runs, time.time())


def all_runs(job: ControlJob) -> Iterator[tuple[str, str]]:
    """Name and run of every folder below home/runs."""
    storage = open_storage(f"{job.home}/runs")
    for name in storage.folders(""):
        yield from ((name, run) for run in storage.folders(name))


def seen(run_dir: str) -> RunStatus | None:
    """A run's status; of a train run that is under way with what its trial has reported."""
    status = read_status(run_dir)
    if status is None or status.command != "train" or status.state is not State.running:
        return status
    objective = objective_of(status)
    _, reports = read_curve(f"{run_dir}/trials/train", status.metric)
    if objective is None or (best := objective.best(reports)) is None:
        return status
    found = Best(value=best.metrics[objective.metric], trial="train", step=best.step)
    return replace(status, best=found, steps_done=reports[-1].step)


def find_run(job: ControlJob) -> Run:
    """The run that run= names. Raises InputError with the nearest ones."""
    name, _, run = (job.run or "").partition("/")
    if run:
        check_name("run", name)
        check_name("run", run)
        run_dir = f"{job.home}/runs/{name}/{run}"
        status = seen(run_dir)
        if status is not None:
            return Run(run_dir, status)
    known = [f"{name}/{run}" for name, run in all_runs(job)]
    own = sorted((one for one in known if one.startswith(f"{name}/")), reverse=True)
    near = difflib.get_close_matches(job.run or "", known, n=3, cutoff=0.4)
    listed = ", ".join(dict.fromkeys([*near, *own[:3]])) or "none"
    raise InputError(f"run={job.run} is no run below {job.home}/runs; nearest: {listed} (action=jobs lists all)")


def find_trial(run: Run, id: str | None) -> TrialView:
    """A trial of the run. Raises InputError with the nearest ones."""
    trials = {trial.id: trial for trial in read_trials(run.dir, run.status.metric)}
    if id in trials:
        return trials[id]
    near = difflib.get_close_matches(id or "", trials, n=3, cutoff=0.4) or list(trials)[:3]
    raise InputError(
        f"trial={id} is no trial of {run.label}; nearest: {', '.join(near) or 'none'} (action=list shows all)"
    )


def refuse_unless_alive(run: Run, action: ControlAction) -> None:
    """Raise InputError for a run that can't carry this out, with what can be done instead."""
    state, again = run.status.state, f"the same command with run={run.status.run}"
    if run.status.is_lost(time.time()):
        raise InputError(f"{run.label} isn't running: its driver is dead; {again} resumes it")
    if state.is_final and action is ControlAction.extend:
        raise InputError(f"{run.label} isn't running; {again} sweep.extend=true and a larger sweep.space continues it")
    if state.is_final:
        resumes = "" if state is State.ended else f"; {again} resumes it"
        raise InputError(f"{run.label} isn't running (state: {state.value}): nothing to {action.value}{resumes}")
    if action is ControlAction.cancel:
        return
    if run.status.command != "sweep":
        raise InputError(f"{run.label} is a single run, which can't {action.value}; allowed: action=cancel")
    if state is State.comparing:
        raise InputError(f"{run.label}: its trials are over, and the best is being compared; allowed: action=cancel")


def send(job: ControlJob, run: Run) -> int:
    """Give the sweep a command, and print its answer; 1 where it refuses, or doesn't answer in time. Raises
    InputError."""
    values, action = dict(flat(job.values)), Action(job.asked.value)
    check(job, run, values)
    commands = Commands(run.dir)
    command = commands.send(action, trial=job.trial, quantile=job.quantile, values=values, space=job.space)
    answer = commands.wait(command.id, job.timeout_seconds)
    if answer is None:
        file = f"{run.dir}/control/answers/{command.id}.json"
        late = f"no answer within {job.timeout_seconds:g} s from {run.label} ({run.status.state.value})"
        print(f"{late}; the command stays in effect, its answer comes to {file}")
        return 1
    print(answer.text if answer.done else f"refused: {answer.text}")
    return 0 if answer.done else 1


def check(job: ControlJob, run: Run, values: Mapping[str, Any]) -> None:
    """Refuse what can be seen at once to be wrong; the sweep checks the rest. Raises InputError."""
    if job.trial is not None:
        trial = find_trial(run, job.trial)
        if job.asked is ControlAction.stop and trial.ending is not None:
            raise InputError(f"trial={job.trial} has ended already: {trial.ending.why}")
    check_keys("values", list(values))
    check_keys("space", [key for key, _ in axes_of(job.space)])


def check_keys(where: str, keys: Sequence[str]) -> None:
    """Refuse keys that no trial has. Raises InputError."""
    known = [f"{group}.{field.name}" for group, cls in KNOWN_GROUPS.items() for field in fields(cls)]
    for key in keys:
        check_sweepable(key, f"{where}.")
        inside = any(key == name or key.startswith(f"{name}.") for name in known)
        if key.partition(".")[0] in KNOWN_GROUPS and not inside:
            raise InputError(f"{where}: {unknown_key(key, known)}")
