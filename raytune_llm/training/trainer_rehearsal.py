"""A trial with a base of its own rehearsed: the first steps and evaluations of its trainer, in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from raytune_llm.data.examples import Example, Examples
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.models.loading import load_model
from raytune_llm.models.memory import free_bytes, held_bytes, peak_bytes
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.fits import footprint
from raytune_llm.training.rehearsal import Answered, Memory, Rehearsal, Script, device_name
from raytune_llm.training.rehearsed_answers import rehearse_answers
from raytune_llm.training.tracking.base import CompositeRun
from raytune_llm.training.trial import WorkerContext, fit

STEPS, EVERY = 9, 3
"""Steps of the rehearsed trial, and between its evaluations."""
EVALUATED = 64
"""Eval examples of a rehearsed evaluation."""


class Enough(Exception):
    """Ends a rehearsed trial whose time is up."""


@dataclass
class Timeline:
    """When a trial ended its steps and evaluations; ends it when it has both and its time is up."""

    script: Script
    steps: list[float] = field(default_factory=list)
    """When each step ended."""
    evaluated: list[float] = field(default_factory=list)
    """Seconds of each evaluation with its checkpoint."""

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """A trial's Progress."""
        now = time.monotonic()
        if not metrics:
            self.steps.append(now)
            return
        self.evaluated.append(now - self.steps[-1])
        if now - self.steps[0] > self.script.limit(self.step_seconds):
            raise Enough

    @property
    def step_seconds(self) -> float:
        """Of a step that follows another; the first of all has taken longer."""
        pairs = [(place, now) for place, now in enumerate(self.steps) if place % EVERY]
        return median(now - self.steps[place - 1] for place, now in pairs)


def rehearse_trainer(script: Script, examples: Examples, *, use_gpu: bool, start_seconds: float) -> Rehearsal:
    """What the trial of a script will take in a process like this one, as its only worker."""
    device = torch.device("cuda" if use_gpu else "cpu")
    config, started = script.spec.config, time.monotonic()
    before, free = held_bytes(device), free_bytes(device)
    whole = config.method.needs.sampling or config.answering is not None
    evaluated, scale = _part(examples, whole=whole)
    timeline = Timeline(script)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder, suppress(Enough):
        fit(
            _short(script.spec),
            Examples(examples.train, evaluated, guard=examples.guard),
            WorkerContext(Path(folder), 0, 1, use_gpu),
            report=lambda metrics, checkpoint: None,
            run=CompositeRun(()),
            progress=timeline,
            resume=None,
        )
    peak = peak_bytes(device)
    load_seconds, base, comparing = _compared(script, config, timeline.step_seconds, use_gpu)
    trained = footprint(config, lora_rank=config.tuning.adapter_size, device=device.type).trial_bytes
    return Rehearsal(
        source="measured",
        device=device_name(use_gpu),
        start_seconds=start_seconds + timeline.steps[0] - started,
        load_seconds=load_seconds,
        steps={1: timeline.step_seconds},
        evaluations={1: min(timeline.evaluated) * scale},
        checkpoint_seconds=0.0,
        answering=None,
        comparing=comparing,
        capacity=1,
        memory=Memory(base=base, slots=trained, others=0 if use_gpu else before, peak=peak, free=free),
        spent_seconds=time.monotonic() - started,
    )


def _part(examples: Examples, *, whole: bool) -> tuple[Sequence[Example], float]:
    """Some of the eval examples at even distances, and how many times as many tokens a whole evaluation has, drift's
    included."""
    if whole or len(examples.eval) <= EVALUATED:
        return examples.eval, 1.0
    table, drift_tokens = ExampleTable.of(examples.eval), ExampleTable.of(examples.guard).lengths().sum()
    part = table.select(np.linspace(0, len(table) - 1, EVALUATED).astype(np.int64))
    return part, float((table.lengths().sum() + drift_tokens) / (part.lengths().sum() + drift_tokens))


def _short(spec: TrialSpec) -> TrialSpec:
    """The trial's first steps."""
    values = {"tuning.steps": STEPS, "tuning.eval_every": EVERY, "tuning.early_stopping.patience": None}
    return replace(spec, config=spec.config.with_values(values), milestones=())


def _compared(
    script: Script, config: TrialConfig, step_seconds: float, use_gpu: bool
) -> tuple[float, int, Answered | None]:
    """(seconds of loading the base, its bytes, what answering by it takes)."""
    started = time.monotonic()
    model = load_model(config.model, None, score=config.method.needs.score, use_gpu=use_gpu)
    load_seconds = time.monotonic() - started
    answered = None
    if script.asked is not None:
        limit = script.limit(step_seconds)
        answered = rehearse_answers(model, config.model.tokenizer(), script.asked, stack=None, limit=limit)
    return load_seconds, sum(parameter.nbytes for parameter in model.parameters()), answered
