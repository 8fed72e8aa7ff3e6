"""What the service keeps: files, tuning jobs as they were asked for, and how far each one is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

AUTO = "auto"
"""A hyperparameter that a sweep is to find."""
LOCAL_OWNER = "local"
"""Who owns everything where no API keys are configured."""
OWNER_CHARS = 16
TAG_CHARS = 8


def new_id(kind: str) -> str:
    """A new id of a kind: file-…, ftjob-… It never comes from a client, and no client's text becomes a path."""
    return f"{kind}-{secrets.token_hex(12)}"


def owner_of(key_hash: str) -> str:
    """Who a request belongs to, by the hash of its API key; '' without keys."""
    return key_hash[:OWNER_CHARS] or LOCAL_OWNER


def registry_name(owner: str, suffix: str | None, base: str) -> str:
    """The name that a job publishes under. It ends in the owner's tag, so that names of different owners differ."""
    name = suffix or f"ft-{base}"
    return name if owner == LOCAL_OWNER else f"{name}-{owner[:TAG_CHARS]}"


def owns_name(owner: str, name: str) -> bool:
    """Whether a registry name is one that this owner's jobs publish under."""
    return owner == LOCAL_OWNER or name.endswith(f"-{owner[:TAG_CHARS]}")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An uploaded file, or a result of a job."""

    id: str
    owner: str
    filename: str
    """As the client named it; never a path."""
    purpose: str
    """fine-tune or fine-tune-results."""
    num_bytes: int
    num_lines: int
    sha256: str
    created: int
    """Unix time, seconds."""
    location: str
    """Path or URI of its content, as data.train takes it."""


class State(Enum):
    """How far a job is; the values are OpenAI's."""

    validating_files = "validating_files"
    queued = "queued"
    running = "running"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.succeeded, State.failed, State.cancelled)


class Wanted(Enum):
    """What the job's owner wants of it."""

    run = "run"
    pause = "pause"
    cancel = "cancel"


@dataclass(frozen=True, kw_only=True)
class DataRef:
    """Records to train or validate on."""

    name: str
    """As the client named it: a file's id, or an allowed URI."""
    location: str
    """Path or URI, as data.train takes it."""


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """A job as it was asked for; written once."""

    id: str
    owner: str
    created: int
    """Unix time, seconds."""
    api: str
    """openai or vertex: whose shape it was created in."""
    method: str
    """A choice of conf/method: sft, dpo, rlhf, dss, distill."""
    model: str
    """As the client named it: an offered base, or a version NAME@3 of its own to continue."""
    base: str
    """The name of the offered base."""
    init_adapter: str | None
    """The version in which training continues."""
    training: DataRef
    validation: DataRef | None
    hyperparameters: Mapping[str, int | float | str]
    """Those given, under OpenAI's names (n_epochs, batch_size, learning_rate_multiplier, beta), adapter_size, and what
    other methods add (teacher); 'auto' or a value. One that is not given has the service's default."""
    name: str
    """The registry name that it publishes under."""
    suffix: str | None
    seed: int
    metadata: Mapping[str, str]
    wandb: Mapping[str, Any] | None
    """project, name, entity and tags of a run of Weights & Biases; None without."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only its own shape has, to be answered as it was given: Vertex's display name and labels."""

    @property
    def run(self) -> str:
        """The folder name of its run: the same for every attempt, so that a later one resumes."""
        return self.id


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job was expected to take, when its files had been checked."""

    records: int
    epochs: float
    """The most that a trial trains."""
    tokens: int
    """Of training: tokens an epoch times epochs, times trials that train on their own."""
    trials: int
    device_hours: float
    """A guess from sizes alone: GPU hours, or hours of a CPU where there is no GPU."""


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed, for its owner."""

    code: str
    message: str
    param: str | None
    """training_file, validation_file or a hyperparameter's name."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run left."""

    version: str
    """NAME@3, whether it won or not."""
    is_named: bool
    """Whether it is the job's fine_tuned_model: proven better, or trained with explicit values alone."""
    text: str
    """The verdict, in a sentence."""
    step: int
    metrics: Mapping[str, float]
    trained_tokens: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a job is. Written by the controller alone."""

    state: State
    wanted: Wanted = Wanted.run
    attempt: int = 0
    """Ray jobs made for it so far. The present one's id is submission_id(request.id, attempt)."""
    lost: int = 0
    """Attempts that the cluster lost, and that were made again by itself."""
    is_submitted: bool = False
    """Whether the present attempt has been handed to Ray and not yet ended."""
    changes: tuple[tuple[str, float], ...] = ()
    """Each state it has entered, with its Unix time."""
    command: tuple[str, ...] = ()
    """raytune-llm COMMAND and its overrides; the same for every attempt."""
    estimate: Estimate | None = None
    plan_notes: tuple[str, ...] = ()
    """What its owner should know of the command."""
    error: JobError | None = None
    note: str | None = None
    """Why it waits or is paused, where its owner didn't ask for it."""
    result: Result | None = None
    device_seconds: float = 0.0
    counted: float | None = None
    """Unix time up to which they are counted, while an attempt is on the cluster."""
    result_files: tuple[str, ...] = ()

    def since(self, state: State) -> float | None:
        """When it last entered a state; None if it never did."""
        return next((at for name, at in reversed(self.changes) if name == state.value), None)


def submission_id(job_id: str, attempt: int) -> str:
    """The id of an attempt's Ray job. Ray takes an id once, so no attempt can run twice."""
    return f"{job_id}-{attempt}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job."""

    id: str
    """ftevent-JOB-NUMBER; numbers rise by one."""
    created: int
    level: str
    """info, warn or error."""
    kind: str
    """message or metrics."""
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
