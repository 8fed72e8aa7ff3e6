"""Trials on one resident base from their start to their end: stepped together, evaluated, stopped, checkpointed,
logged.

The part of packed training that knows trials' configs, but not Ray: actor.py runs it in a Ray actor, a test runs it in
place. A trial's checkpoint has the parts of training/reporting.py and is kept in its own folder, from which any pack on
the same base resumes it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raytune_llm.data.examples import Examples
from raytune_llm.methods import model_refs
from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.models.lora_folder import read_weights, target_names
from raytune_llm.training import checkpoints
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.fits import check_fits
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import SlotSaver
from raytune_llm.training.packed.hyperparameters import hyperparameters_of
from raytune_llm.training.packed.memory import choose_capacity, fit_tokens, free_bytes
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner
from raytune_llm.training.packed.slot import StepReport
from raytune_llm.training.packed.trial_state import TrialState
from raytune_llm.training.reporting import LiveTrial
from raytune_llm.training.tracking.base import Run

LOG_EVERY = 10
"""Steps between logged training losses."""
MEMORY_SHARE = 0.8
"""Of the device's free memory, for slots and activations."""


class PackedTrials:
    """A base on a device, with its pack."""

    def __init__(
        self,
        config: TrialConfig,
        examples: Examples,
        *,
        wanted: int,
        max_lora_rank: int,
        device: str,
        log: Callable[[str], None],
    ) -> None:
        """`config`: what the trials have in common. `wanted` slots of rank ≤ `max_lora_rank`, fewer where memory
        doesn't hold them. `log` receives the planner's lines. Raises InputError when memory holds no slot."""
        assert isinstance(config.adapter, LoRA)
        self.config, self.log = config, log
        check_fits(config, lora_rank=max_lora_rank, device=device)
        own_dropout, score = config.adapter.trains_base, config.method.needs.score
        self.model = config.model.load(own_dropout=own_dropout, score=score, device=device)
        self.lora_config = config.adapter.config(self.model, lora_rank=max_lora_rank)
        names = target_names(self.lora_config, self.model)
        is_encoder_decoder = bool(self.model.config.is_encoder_decoder)
        self.train = TokenTable(examples.train, is_encoder_decoder=is_encoder_decoder)
        self.eval = TokenTable(examples.eval, is_encoder_decoder=is_encoder_decoder)
        self._budget_bytes = int(free_bytes(torch.device(device)) * MEMORY_SHARE)
        self.capacity = choose_capacity(
            self.model, names, max_lora_rank, wanted=wanted, budget_bytes=self._budget_bytes
        )
        budget = PassBudget(self.capacity, 1 << 30, 128)
        self.pack = Pack(self.model, names, capacity=self.capacity, max_lora_rank=max_lora_rank, budget=budget)
        with model_refs.initial_adapter(config.method, config.registry_dir) as folder:
            self._initial = None if folder is None else read_weights(folder, names)
        self._planner: Planner | None = None
        self._most_at_once = 0
        self.trials: dict[str, LiveTrial] = {}
        self.scratch = tempfile.TemporaryDirectory(prefix="pack-")

    def join(self, spec: TrialSpec, run: Run) -> tuple[list[Report], str | None]:
        """Admit a trial, from its stored checkpoint if it has one; its reports so far, and why it has ended
        already."""
        trial_id = spec.trial.id
        folder = Path(self.scratch.name, trial_id)
        shutil.rmtree(folder, ignore_errors=True)
        num_gpus = 0 if self.pack.stack.device.type == "cpu" else 1
        stored = checkpoints.latest(spec.directory)
        if stored is None:
            trial, state = LiveTrial(spec, run, folder, num_gpus=num_gpus), None
        else:
            with checkpoints.fetch(stored) as resume:
                trial = LiveTrial(spec, run, folder, num_gpus=num_gpus, resume=Path(resume))
                state = TrialState.load(Path(resume, "state"))
        terms = spec.config.method.terms
        self.pack.join(hyperparameters_of(spec), self.train, terms, weights=self._initial, state=state)
        self.trials[trial_id] = trial
        return list(trial.history.reports), trial.ended

    def reports_next(self, trial_id: str) -> bool:
        """Whether the trial's next step ends in a report."""
        return self.trials[trial_id].is_due(self.pack.steps_done(trial_id) + 1)

    def leave(self, trial_id: str, *, failed: bool = False) -> None:
        """Free a trial's slot; its checkpoint stays."""
        trial = self.trials.pop(trial_id)
        self.pack.leave(trial_id)
        trial.run.finish({}, failed)
        shutil.rmtree(trial.folder, ignore_errors=True)

    def advance(self) -> dict[str, tuple[Report, str | None]]:
        """One step of every trial. Of those that were due for an evaluation: the report, and why the trial has
        ended."""
        started = time.monotonic()
        steps = self._plan().step()
        due = [trial_id for trial_id, report in steps.items() if self.trials[trial_id].is_due(report.step)]
        for trial_id, report in steps.items():
            self._log_step(self.trials[trial_id], report)
        scores = self.pack.evaluate(self.eval, due) if due else {}
        elapsed = (time.monotonic() - started) / len(steps)
        for trial in self.trials.values():
            trial.history.seconds += elapsed
        return {trial_id: self._report(trial_id, steps[trial_id].step, scores[trial_id].metrics()) for trial_id in due}

    def close(self) -> None:
        """Free everything, trials as they are."""
        for trial_id in list(self.trials):
            self.leave(trial_id, failed=True)
        self.pack.close()
        self.scratch.cleanup()

    def _plan(self) -> Planner:
        """The planner, made at the first step, when there is a slot to measure. On a CPU it counts the process's own
        seconds: other processes there, as the proxies that start during its first measurements, would mislead it."""
        if self._planner is None:
            largest = max(trial.config.tuning.micro_batch_size or 1 for trial in self.trials.values())
            longest_pass = int(self.train.lengths.max()) * largest
            tokens = fit_tokens(self.pack, longest_pass, budget_bytes=self._budget_bytes)
            on_cpu = self.pack.stack.device.type == "cpu"
            clock = time.process_time if on_cpu else time.perf_counter
            self._planner = Planner(self.pack, max_tokens=tokens, log=self._log_plan, clock=clock)
        return self._planner

    def _log_step(self, trial: LiveTrial, report: StepReport) -> None:
        loss = report.metrics["loss"]
        trial.add_loss(loss)
        if report.step % LOG_EVERY == 0:
            metrics = {"loss": loss, "learning_rate": report.learning_rate, "grad_norm": report.grad_norm}
            trial.log_step(report.step, metrics)

    def _report(self, trial_id: str, step: int, metrics: dict[str, float]) -> tuple[Report, str | None]:
        trial = self.trials[trial_id]
        base = self.config.model.name_or_path
        saver = SlotSaver(self.pack, hyperparameters_of(trial.spec), self.lora_config, base)
        report = trial.report(step, metrics, seconds=trial.history.seconds, saver=saver)
        checkpoints.save(trial.spec.directory, step, trial.folder)
        return report, trial.ended

    def _log_plan(self, line: str) -> None:
        """Pass on the first choice and those for more trials per pass; as trials end, the planner chooses over and over
        again."""
        at_once = self.pack.budget.slots_per_pass
        if at_once > self._most_at_once:
            self._most_at_once = at_once
            self.log(line)
