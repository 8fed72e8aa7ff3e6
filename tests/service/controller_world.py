"""A cluster, runs, checks and a clock for the controller, which a test moves."""

import contextlib
from dataclasses import dataclass, field

from raytune_llm.service.check_process import Finished
from raytune_llm.service.config import Auto, Service
from raytune_llm.service.controller import Controller
from raytune_llm.service.planning import Planned
from raytune_llm.service.records import DataRef, Estimate, TuningRequest, new_id
from raytune_llm.service.run_files import Point, Trial
from raytune_llm.service.runner import RunState, Seen
from raytune_llm.service.store import Store
from raytune_llm.stores.json import to_json

START = 1_700_000_000.0
TRAIN = {"num_records": 10, "prompt_tokens": {"total": 30}, "completion_tokens": {"total": 70}}
REPORT = {"splits": {"train": TRAIN}, "parameters": 1000}
AUTO = Auto(n_epochs=(1,), batch_size=(4,), learning_rate_multiplier=(1.0,), adapter_size=(4,), max_steps=10)


def service(**fields):
    """A service's config."""
    values = {
        "host": "127.0.0.1",
        "port": 8080,
        "api_key_env": None,
        "models": ("demo",),
        "overrides": {},
        "ray_address": None,
        "max_jobs": 1,
        "max_jobs_per_key": None,
        "max_queued_per_key": 100,
        "device_hours_per_key": None,
        "max_file_bytes": 1 << 20,
        "max_stored_bytes_per_key": 1 << 20,
        "data_prefixes": (),
        "check_timeout_seconds": 60.0,
        "poll_seconds": 0.01,
        "auto": AUTO,
        "answers": None,
    }
    return Service(**values | fields)


def request(owner="local", *, created=START, **fields):
    """A job that is yet to be created."""
    id = new_id("ftjob")
    values = {
        "id": id,
        "owner": owner,
        "created": int(created),
        "api": "openai",
        "method": "sft",
        "model": "demo",
        "base": "demo",
        "init_adapter": None,
        "training": DataRef(name="file-aaa", location="/data/home/service/files/file-aaa/content.jsonl"),
        "validation": None,
        "hyperparameters": {"n_epochs": "auto"},
        "name": "tuned",
        "suffix": None,
        "seed": 1,
        "metadata": {},
        "wandb": None,
    }
    return TuningRequest(**values | fields)


@dataclass
class Clock:
    """Unix time as a test moves it."""

    now: float = START

    def __call__(self):
        return self.now


@dataclass
class Work:
    """What a job does on the cluster."""

    seconds: float = 20.0
    """Of running, over all attempts."""
    fails: str | None = None
    """What it prints before it fails with status 2."""
    promoted: bool = True


@dataclass
class Attempt:
    state: RunState
    started: float
    ended: float | None = None
    message: str = ""


@dataclass
class World:
    """What survives a service: a cluster with its runs, and the clock."""

    clock: Clock = field(default_factory=Clock)
    work: dict = field(default_factory=dict)
    """Of a job, by its id; Work() where nothing else is given."""
    attempts: dict = field(default_factory=dict)
    submitted: list = field(default_factory=list)
    """Ids that were started, in order."""
    commands: dict = field(default_factory=dict)
    done: dict = field(default_factory=dict)
    """Seconds that a job has run, by id."""
    outcomes: dict = field(default_factory=dict)
    unreachable: bool = False
    gpus: int = 0
    most_at_once: int = 0
    stops: int = 0
    bad_files: dict = field(default_factory=dict)
    """How a job's check ends, where it isn't well: a Finished by id."""

    # Runner

    def submit(self, submission_id, command, metadata):
        self._reach()
        if submission_id in self.attempts:
            return
        assert metadata["job"] == submission_id.rpartition("-")[0] and metadata["owner"]
        self.submitted.append(submission_id)
        self.commands[submission_id] = command
        self.attempts[submission_id] = Attempt(RunState.running, self.clock.now)
        self.most_at_once = max(self.most_at_once, len(self.running))

    def seen(self, submission_id):
        self._reach()
        found = self.attempts.get(submission_id)
        return found and Seen(found.state, found.message, found.ended)

    def stop(self, submission_id):
        self._reach()
        self.stops += 1
        self._stopping().add(submission_id)

    def log(self, submission_id):
        fails = self.of(submission_id).fails
        return "" if fails is None else f"step 1\n{fails}\nbye"

    def devices(self):
        self._reach()
        return float(self.gpus or 1)

    def has_gpu(self):
        self._reach()
        return self.gpus > 0

    # the test's side

    @property
    def running(self):
        return [id for id, attempt in self.attempts.items() if not attempt.state.is_final]

    def of(self, submission_id):
        return self.work.get(submission_id.rpartition("-")[0], Work())

    def pass_time(self, seconds):
        """Everything that runs runs on for so long."""
        self.clock.now += seconds
        for id in self.running:
            attempt, job = self.attempts[id], id.rpartition("-")[0]
            self.done[job] = self.done.get(job, 0) + seconds
            if id in self._stopping():
                self._end(attempt, RunState.stopped)
            elif self.done[job] >= self.of(id).seconds:
                self._finish(id, attempt, job)

    def lose(self):
        """The cluster ends, and a new one knows nothing."""
        self.attempts.clear()

    def open_run(self, home, name, run):
        return Run(self, run)

    def _finish(self, id, attempt, job):
        work = self.of(id)
        if work.fails is not None:
            attempt.message = "Job entrypoint command failed with exit code 2, last available logs"
            self._end(attempt, RunState.failed)
            return
        self.outcomes[job] = outcome(promoted=work.promoted)
        self._end(attempt, RunState.succeeded)

    def _end(self, attempt, state):
        attempt.state, attempt.ended = state, self.clock.now

    def _stopping(self):
        return self.__dict__.setdefault("_stop_asked", set())

    def _reach(self):
        if self.unreachable:
            raise ConnectionError("the cluster can't be reached")


def outcome(*, promoted):
    """A run's result.json."""
    return {
        "version": "tuned@1",
        "promoted": promoted,
        "verdicts": ["better than base"],
        "contradiction": None,
        "trial": "t1",
        "values": {"tuning.steps": 4},
        "step": 4,
        "metric": "eval/loss",
        "metrics": {"eval/loss": 1.0},
        "trained_tokens": 400,
    }


@dataclass
class Run:
    """The files of a run: a step every five seconds."""

    world: World
    job: str

    def trials(self):
        seconds = self.world.work.get(self.job, Work()).seconds
        points = [
            Point(
                step=i,
                time=START + i,
                metrics={"train/loss": 2 / i, "eval/loss": 1 + 1 / i, "eval/token_accuracy": 0.5},
            )
            for i in range(1, int(min(seconds, self.world.done.get(self.job, 0)) // 5) + 1)
        ]
        return [Trial(id="t1", values={"tuning.steps": 4}, points=points)] if points else []

    def outcome(self):
        return self.world.outcomes.get(self.job)

    def leaderboard(self):
        return []

    def file(self, name):
        return b"rank\n1\n" if name == "leaderboard.csv" else None


def metrics_at(step):
    return {"train/loss": 2 / step, "eval/loss": 1 + 1 / step, "eval/token_accuracy": 0.5}


class Check:
    """A check of files that has ended as soon as it is asked."""

    def __init__(self, finished):
        self.finished, self.killed = finished, False

    def poll(self):
        return self.finished

    def kill(self):
        self.killed = True


class Planner:
    """A command for each request."""

    def __init__(self, store, notes=()):
        self.store, self.notes = store, notes

    def check_command(self, request, folder):
        return ("raytune-llm", "check", f"report={folder}", request.id)

    def plan(self, request, facts, *, has_gpu):
        assert (facts.train_records, facts.train_tokens, facts.parameters) == (10, 100, 1000)
        estimate = Estimate(records=10, epochs=3, tokens=300, trials=2, device_hours=0.5)
        command = "train" if request.hyperparameters.get("n_epochs") == 3 else "sweep"
        return Planned(
            command=("raytune-llm", command, f"run={request.id}", f"has_gpu={has_gpu}"),
            estimate=estimate,
            notes=self.notes,
        )


def controller(world, store, config=None, *, check=None):
    """A controller in that world; check: what is started in place of checks."""

    def start_check(command):
        id = command[-1]
        if id in world.bad_files:
            return Check(world.bad_files[id])
        with contextlib.suppress(FileExistsError):
            store._storage.write(f"service/jobs/{id}/check/report.json", to_json(REPORT).encode())
        return Check(Finished(0, ""))

    return Controller(
        store,
        config or service(),
        world,
        planner=Planner(store),
        start_check=check or start_check,
        open_run=world.open_run,
        now=world.clock,
    )


def run_to_end(world, found, *, seconds=5.0, steps=400):
    """Steps and time in turns until nothing is left to do."""
    for _ in range(steps):
        found.step()
        jobs = found._jobs.all()
        if found.is_idle and all(entry.status.state.is_final or entry.status.state.value == "paused" for entry in jobs):
            return
        world.pass_time(seconds)
    raise AssertionError({entry.request.id: entry.status for entry in found._jobs.all()})


def open_store(folder):
    return Store(str(folder))
