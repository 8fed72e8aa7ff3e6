"""What a trial trains (TrialSpec: a TrialConfig, with Tuning and Scaling) and what comes of it (Report, Outcome).

Light: every process that only passes trials on imports this module, so it imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, TypeVar

from raytune_llm.data.mixture import Mixture
from raytune_llm.errors import InputError, require
from raytune_llm.evaluation.terms import Better
from raytune_llm.training.objective import Objective, Report

if TYPE_CHECKING:
    from raytune_llm.evaluation.answering import Answering
    from raytune_llm.methods.base import Method
    from raytune_llm.models.adapters.base import Adapter
    from raytune_llm.models.base import Base
    from raytune_llm.training.tracking.base import Tracker

T = TypeVar("T")


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"

    @property
    def looks_at_horizon(self) -> bool:
        """Whether the rate at a step depends on how many steps there will be."""
        return self is not Schedule.constant


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop a trial whose eval metric no longer improves."""

    patience: int | None
    """Evaluations in a row without improvement before a trial stops; ≥ 1, or null to never stop early."""
    min_delta: float
    """Smallest change of the metric that counts as an improvement; ≥ 0, in the metric's unit."""

    def __post_init__(self) -> None:
        require(
            self.patience is None or self.patience >= 1, "tuning.early_stopping.patience", self.patience, "≥ 1 or null"
        )
        require(self.min_delta >= 0, "tuning.early_stopping.min_delta", self.min_delta, "≥ 0")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The knobs of one training run, in the user's words. A step is one optimizer step, always."""

    steps: int
    """Optimizer steps; ≥ 1."""
    learning_rate_multiplier: float
    """Times the recommended rate of the model and adapter; > 0. 1.0 is the recommendation."""
    adapter_size: int
    """LoRA rank (1, 4, 8, 16 or any other the base allows); ≥ 1. Ignored by adapter=full only."""
    batch_size: int
    """Examples per optimizer step, over all workers; ≥ 1."""
    micro_batch_size: int | None
    """Examples per forward pass of one worker, the rest by gradient accumulation; null = all of the worker's share at
    once."""
    schedule: Schedule
    """Learning rate after warm-up: constant (steps are then free in a sweep), linear or cosine decay to 0."""
    warmup_steps: int
    """Steps of linear warm-up from 0; ≥ 0."""
    weight_decay: float
    """AdamW's decoupled weight decay; ≥ 0."""
    max_grad_norm: float
    """Gradients are clipped to this global norm; > 0."""
    eval_every: int
    """Steps between evaluations on the eval set; each is also a checkpoint. ≥ 1."""
    early_stopping: EarlyStopping

    def __post_init__(self) -> None:
        for name in ("steps", "adapter_size", "batch_size", "eval_every"):
            require(getattr(self, name) >= 1, f"tuning.{name}", getattr(self, name), "≥ 1")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            "tuning.micro_batch_size",
            self.micro_batch_size,
            "≥ 1 or null",
        )
        for name in ("learning_rate_multiplier", "max_grad_norm"):
            require(getattr(self, name) > 0, f"tuning.{name}", getattr(self, name), "> 0")
        for name in ("warmup_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"tuning.{name}", getattr(self, name), "≥ 0")


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What one trial may use of the cluster."""

    num_workers: int
    """Data-parallel workers of one trial; ≥ 1. tuning.batch_size is divided among them."""
    use_gpu: bool | None
    """Whether workers compute on GPUs; null = if the cluster has any, or its autoscaler can start some."""
    gpus_per_worker: float
    """Share of a GPU reserved for each worker; > 0 and ≤ 1. At 0.25 four trials of one worker share a GPU, each with a
    copy of the base of its own; memory isn't divided, so all of them must fit. Below 1 trials aren't packed."""
    wait_seconds: float
    """Longest time to wait for a GPU node that the cluster's autoscaler starts; ≥ 0."""
    usd_per_hour: float | None
    """What a device costs an hour, in US dollars: a GPU or, where nothing computes on GPUs, a node; ≥ 0, or null where
    it isn't known."""
    cpus_per_worker: float | None
    """CPUs that each worker reserves and computes with; > 0, or null: 1 in a sweep and next to a GPU, else all of a
    node's, shared out among a run's workers."""
    max_failures: int
    """Times a trial whose worker or node died is resumed from its last checkpoint; -1 = always."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trainer: dict[str, Any]
    """Further arguments of TRL's (transformers') trainer by name, e.g. scaling.trainer.use_liger_kernel=true; of the
    method's own training, not of its earlier stages. Trials with any aren't packed."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, "scaling.num_workers", self.num_workers, "≥ 1")
        cpus = self.cpus_per_worker
        require(cpus is None or cpus > 0, "scaling.cpus_per_worker", cpus, "> 0 or null")
        require(self.max_failures >= -1, "scaling.max_failures", self.max_failures, "≥ -1")
        require(0 < self.gpus_per_worker <= 1, "scaling.gpus_per_worker", self.gpus_per_worker, "> 0 and ≤ 1")
        one_each = self.num_workers == 1 or self.gpus_per_worker == 1
        limit = f"1 with scaling.num_workers={self.num_workers}: data-parallel workers take a GPU each"
        require(one_each, "scaling.gpus_per_worker", self.gpus_per_worker, limit)
        require(self.wait_seconds >= 0, "scaling.wait_seconds", self.wait_seconds, "≥ 0")
        price = self.usd_per_hour
        require(price is None or price >= 0, "scaling.usd_per_hour", price, "≥ 0 or null")

    @property
    def cpus_in_sweep(self) -> float:
        """CPUs of each worker of a sweep's trial."""
        return 1.0 if self.cpus_per_worker is None else self.cpus_per_worker

    def worker_resources(self, *, use_gpu: bool, cpus: float | None = None) -> dict[str, float]:
        """What each worker reserves, by Ray's names; `cpus`: in place of those in a sweep."""
        return {"CPU": cpus or self.cpus_in_sweep, **({"GPU": self.gpus_per_worker} if use_gpu else {})}


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All that a trial needs of its job, and no more: what is left out would cost each of its processes imports."""

    name: str
    """Of the tuned model."""
    run: str
    home: str
    """Folder or URI that holds runs/ and registry/."""
    seed: int
    """Seeds data order, initial adapter and dropout."""
    allow_modules: tuple[str, ...]
    """Python modules whose functions may be called."""
    model: Base
    method: Method
    data: Mixture
    """Which of the training records, and how often."""
    data_name: str
    """What trackers call the training records."""
    adapter: Adapter
    tuning: Tuning
    scaling: Scaling
    tracking: Mapping[str, Tracker]
    """In addition to metrics.jsonl, which is always written."""
    eval_batch_size: int
    """Prompts that are answered at once, and that a method which samples generates or scores at once."""
    better: Better | None
    """Direction of the method's metric, which its examples show; None = they haven't been read."""
    answering: Answering | None
    """What is answered at each evaluation; None where the method's metric isn't one of answers."""
    keeps_records: bool
    """Whether each trial's folder gets the metric's statistics of every eval record at its best report."""

    @property
    def run_dir(self) -> str:
        return f"{self.home}/runs/{self.name}/{self.run}"

    @property
    def registry_dir(self) -> str:
        return f"{self.home}/registry"

    @property
    def learning_rate(self) -> float:
        """Peak rate of AdamW."""
        return self.model.recommended_rate() * self.adapter.rate_factor * self.tuning.learning_rate_multiplier

    @property
    def objective(self) -> Objective:
        """What trials are stopped, ranked and selected by; to be had once examples have been read."""
        assert self.better is not None
        return Objective(self.method.metric, lower_is_better=self.better is Better.lower)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """This config with dotted keys replaced. Raises InputError for an unknown key."""
        return with_values(self, values)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a sweep: an id that is also a folder's name, and the values that differ from the job's."""

    id: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What is to be trained, by any backend."""

    config: TrialConfig
    """With the trial's values applied."""
    trial: Trial
    milestones: tuple[int, ...]
    """Steps at which it is evaluated in addition to every tuning.eval_every."""

    @property
    def directory(self) -> str:
        """Path or URI of its checkpoints and metrics."""
        return f"{self.config.run_dir}/trials/{self.trial.id}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    trial: Trial
    reports: tuple[Report, ...]
    """In order of their steps; empty when it failed before its first evaluation."""
    best: Report | None
    checkpoint: str | None
    """Folder or URI of its last checkpoint: best/ is the adapter (or model) of the best step, state/ what resuming
    needs."""
    seconds: float
    ended: str
    """Why it ended: 'complete', 'early stopping', 'scheduler', 'stopped', 'budget', 'unresolvable', 'cancelled',
    'diverged: …' or 'failed: …'."""


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """A config with dotted keys replaced, e.g. {"tuning.steps": 50}. Raises InputError for an unknown key."""
    found: Any = config
    for key, value in values.items():
        found = _replace(found, key.split("."), value, key)
    return found


def value_of(config: Any, key: str) -> Any:
    """A config's value of a dotted key. Raises InputError for an unknown key."""
    for name in key.split("."):
        config = _field(config, name, key)
    return config


def _replace(node: Any, path: list[str], value: Any, key: str) -> Any:
    present = _field(node, path[0], key)
    if len(path) > 1:
        child = _replace(present, path[1:], value, key)
    else:
        child = type(present)(value) if isinstance(present, Enum) and isinstance(value, str) else value
    return {**node, path[0]: child} if isinstance(node, Mapping) else dataclasses.replace(node, **{path[0]: child})


def _field(node: Any, name: str, key: str) -> Any:
    """A dataclass's field, or one of named components, like method.rewards."""
    if isinstance(node, Mapping):
        names = list(node)
    else:
        names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if name not in names:
        raise InputError(f"{key} is not a key of this job; at '{name}' it has {names}")
    return node[name] if isinstance(node, Mapping) else getattr(node, name)
