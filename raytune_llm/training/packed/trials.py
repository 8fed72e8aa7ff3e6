"""Trials on one resident base from their start to their end: stepped together, evaluated, stopped, checkpointed,
logged.

The part of packed training that knows jobs, but not Ray: actor.py runs it in a Ray actor, a test runs it in place. A
trial's checkpoint is that of training/trial.py (best/, state/, history.json), kept under its own folder, from which it
goes on in any pack on the same base.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig

from raytune_llm.data.examples import Examples
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.methods import model_refs
from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.models.lora_folder import read_weights, target_names
from raytune_llm.training import checkpoints
from raytune_llm.training.config import Report
from raytune_llm.training.history import History
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import export_adapter
from raytune_llm.training.packed.memory import choose_capacity, fit_tokens, free_bytes
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner
from raytune_llm.training.packed.slot import SlotSpec, SlotState, StepReport
from raytune_llm.training.packed.trial_spec import TrialSpec
from raytune_llm.training.tracking.base import Run

LOG_EVERY = 10
"""Steps between logged training losses."""
MEMORY_SHARE = 0.8
"""Of the device's free memory, for slots and activations."""


@dataclass
class ActiveTrial:
    """A trial that is being trained."""

    placement: TrialSpec
    history: History
    run: Run
    scratch: Path
    seconds: float
    step: int
    """Optimizer steps done."""
    train_losses: list[float] = field(default_factory=list)


class PackedTrials:
    """A base on a device, with its pack."""

    def __init__(
        self, job: TrainJob, examples: Examples, *, wanted: int, max_rank: int, device: str, say: Callable[[str], None]
    ) -> None:
        """`wanted` slots of rank ≤ `max_rank`, fewer where memory doesn't hold them. Raises ValueError when it holds
        none."""
        assert isinstance(job.adapter, LoRA)
        self.job, self.say = job, say
        self.model = job.model.load(own_dropout=job.adapter.trains_base, score=job.method.needs.score)
        self.model = self.model.to(device)
        self.config = job.adapter.config(self.model, rank=max_rank)
        names = target_names(self.config, self.model)
        is_encoder_decoder = bool(self.model.config.is_encoder_decoder)
        self.train = TokenTable(examples.train, is_encoder_decoder=is_encoder_decoder)
        self.eval = TokenTable(examples.eval, is_encoder_decoder=is_encoder_decoder)
        budget = int(free_bytes(torch.device(device)) * MEMORY_SHARE)
        self.capacity = choose_capacity(self.model, names, max_rank, wanted=wanted, budget_bytes=budget)
        longest = int(self.train.lengths.max())
        self.pack = Pack(
            self.model, names, capacity=self.capacity, max_rank=max_rank, cut=PassBudget(self.capacity, 1 << 30, 128)
        )
        with model_refs.initial_adapter(job.method, job.registry_dir) as folder:
            self.beginning = None if folder is None else read_weights(folder, names)
        self._budget, self._longest = budget, longest
        self._planner: Planner | None = None
        self._most_at_once = 0
        self.members: dict[str, ActiveTrial] = {}
        self.scratch = tempfile.TemporaryDirectory(prefix="pack-")

    def join(self, placement: TrialSpec, run: Run) -> tuple[list[Report], str | None]:
        """Take a trial in, from its stored checkpoint if it has one; its reports so far, and why it has ended
        already."""
        trial_id = placement.trial.id
        scratch = Path(self.scratch.name, trial_id)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        history, state = History(metric=placement.job.method.metric), None
        if (stored := checkpoints.latest(placement.directory)) is not None:
            with checkpoints.fetch(stored) as folder:
                history = History.load(Path(folder))
                state = SlotState.load(Path(folder, "state"))
                shutil.copytree(Path(folder, "best"), scratch / "best")
        spec, terms = spec_of(placement), placement.job.method.terms
        self.pack.join(spec, self.train, terms, weights=self.beginning, state=state)
        self.members[trial_id] = ActiveTrial(
            placement, history, run, scratch, history.seconds, state.step if state else 0
        )
        return list(history.reports), self._why_ended(trial_id)

    def reports_next(self, trial_id: str) -> bool:
        """Whether the trial's next step ends in a report."""
        return self._is_due(trial_id, self.members[trial_id].step + 1)

    def leave(self, trial_id: str, *, failed: bool = False) -> None:
        """Free a trial's slot; its checkpoint stays."""
        member = self.members.pop(trial_id)
        self.pack.leave(trial_id)
        member.run.finish({}, failed)
        shutil.rmtree(member.scratch, ignore_errors=True)

    def advance(self) -> dict[str, tuple[Report, str | None]]:
        """One step of every trial. Of those that were due for an evaluation: the report, and why the trial has
        ended."""
        started = time.monotonic()
        steps = self._plan().step()
        due = [trial_id for trial_id, report in steps.items() if self._is_due(trial_id, report.step)]
        for trial_id, report in steps.items():
            self._log(trial_id, report)
        scores = self.pack.evaluate(self.eval, due) if due else {}
        elapsed = (time.monotonic() - started) / len(steps)
        for member in self.members.values():
            member.seconds += elapsed
        return {trial_id: self._report(trial_id, steps[trial_id].step, scores[trial_id].metrics()) for trial_id in due}

    def close(self) -> None:
        """Free everything, trials as they are."""
        for trial_id in list(self.members):
            self.leave(trial_id, failed=True)
        self.pack.close()
        self.scratch.cleanup()

    def _plan(self) -> Planner:
        """The planner, made at the first step, when a slot is there to measure. On a CPU it counts the process's own
        seconds: what else runs there, as the proxies that come while it takes its first measures, would mislead it."""
        if self._planner is None:
            longest_pass = self._longest * max(
                m.placement.job.tuning.micro_batch_size or 1 for m in self.members.values()
            )
            tokens = fit_tokens(self.pack, longest_pass, budget_bytes=self._budget)
            on_cpu = self.pack.stack.device.type == "cpu"
            clock = time.process_time if on_cpu else time.perf_counter
            self._planner = Planner(self.pack, max_tokens=tokens, say=self._say, clock=clock)
        return self._planner

    def _is_due(self, trial_id: str, step: int) -> bool:
        placement = self.members[trial_id].placement
        tuning = placement.job.tuning
        return step % tuning.eval_every == 0 or step in placement.milestones or step >= tuning.steps

    def _log(self, trial_id: str, report: StepReport) -> None:
        member = self.members[trial_id]
        member.step = report.step
        member.train_losses.append(report.metrics["loss"])
        if report.step % LOG_EVERY == 0:
            said = {"train/learning_rate": report.learning_rate, "train/grad_norm": report.grad_norm}
            member.run.log(report.step, {"train/loss": report.metrics["loss"], **said})

    def _report(self, trial_id: str, step: int, metrics: dict[str, float]) -> tuple[Report, str | None]:
        member = self.members[trial_id]
        history = member.history
        gpus = 0 if self.pack.stack.device.type == "cpu" else 1
        cost = {"time/seconds": member.seconds, "cost/gpu_hours": gpus * member.seconds / 3600}
        train_loss = math.fsum(member.train_losses) / max(1, len(member.train_losses))
        member.train_losses.clear()
        report = history.add(step, metrics | {"train/loss": train_loss, **cost})
        history.seconds = member.seconds
        self._checkpoint(trial_id, step)
        member.run.log(step, report.metrics)
        return report, self._why_ended(trial_id)

    def _why_ended(self, trial_id: str) -> str | None:
        member = self.members[trial_id]
        tuning, history = member.placement.job.tuning, member.history
        if not history.reports:
            return None
        return history.why_stop(tuning.early_stopping) or ("complete" if history.last.step >= tuning.steps else None)

    def _checkpoint(self, trial_id: str, step: int) -> None:
        member = self.members[trial_id]
        best = member.scratch / "best"
        if member.history.best.step == step or not best.is_dir():
            shutil.rmtree(best, ignore_errors=True)
            config = self._config_of(spec_of(member.placement))
            export_adapter(
                best,
                self.pack.weights(trial_id),
                config,
                base=self.job.model.name_or_path,
                heads=self.pack.heads(trial_id),
            )
        self.pack.state(trial_id).save(member.scratch / "state")
        member.history.save(member.scratch)
        checkpoints.save(member.placement.directory, step, member.scratch)

    def _config_of(self, spec: SlotSpec) -> LoraConfig:
        config = copy.deepcopy(self.config)
        config.r, config.lora_alpha, config.lora_dropout = spec.rank, spec.alpha, spec.dropout
        config.use_rslora = spec.rslora
        return config

    def _say(self, line: str) -> None:
        """Pass on the first choice and those for more trials a pass; as trials end, the planner chooses anew and
        again."""
        at_once = self.pack.cut.slots_per_pass
        if at_once > self._most_at_once:
            self._most_at_once = at_once
            self.say(line)


def spec_of(placement: TrialSpec) -> SlotSpec:
    """A trial's knobs as a slot's."""
    job = placement.job
    tuning, adapter = job.tuning, job.adapter
    assert isinstance(adapter, LoRA)
    return SlotSpec(
        trial_id=placement.trial.id,
        rank=tuning.adapter_size,
        alpha=adapter.alpha,
        rslora=adapter.rslora,
        dropout=adapter.dropout,
        learning_rate=job.learning_rate,
        schedule=tuning.schedule,
        warmup_steps=tuning.warmup_steps,
        num_steps=tuning.steps if tuning.schedule.looks_at_horizon else None,
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        batch_size=tuning.batch_size,
        micro_batch_size=tuning.micro_batch_size,
        seed=job.seed,
    )
