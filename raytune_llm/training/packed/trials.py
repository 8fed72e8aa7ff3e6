"""Trials on one resident base from their start to their end: stepped together, evaluated, stopped, checkpointed,
logged.

The part of packed training that knows trials' configs, but not Ray: actor.py runs it in a Ray actor, a test runs it in
place. A trial's checkpoint has the parts of training/reporting.py and is kept in its own folder, from which any pack on
the same base resumes it. Writing it is left to the caller, who may do so while the pack steps on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

import torch

from raytune_llm.data.examples import Examples
from raytune_llm.errors import InputError
from raytune_llm.evaluation.metrics import Metric, wholes
from raytune_llm.evaluation.terms import LOSS
from raytune_llm.methods import model_refs
from raytune_llm.methods.common.drift import drift_terms
from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.models.lora_folder import read_weights, target_names
from raytune_llm.models.memory import free_bytes, held_bytes
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
from raytune_llm.models.pointwise import CompileError
from raytune_llm.training import checkpoints
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.fits import check_fits
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.answers import PackedAnswers
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import SlotSaver
from raytune_llm.training.packed.hyperparameters import hyperparameters_of
from raytune_llm.training.packed.memory import choose_capacity, fit_tokens
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.pending_report import PendingReport, StateTimer
from raytune_llm.training.packed.planner import Planner
from raytune_llm.training.packed.slot import StepReport
from raytune_llm.training.packed.trial_state import TrialState
from raytune_llm.training.reporting import LiveTrial
from raytune_llm.training.tracking.base import Run

LOG_EVERY = 10
"""Steps between logged training losses."""
MEMORY_SHARE = 0.8
"""Of the device's free memory, for slots and activations."""
MOST_CPU_TOKENS = 2048
"""Of a pass on a CPU: products of so many rows are as fast as any, and what they read still lies in its caches."""


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
        compile: bool | None = None,
        num_sharing: int = 1,
    ) -> None:
        """`config`: what the trials have in common. `wanted` slots of rank ≤ `max_lora_rank`, fewer where memory
        doesn't hold them. `log` receives the planner's lines. `compile`: the base's pointwise parts; None = on a GPU,
        if that works there. `num_sharing`: packs that share the device's memory, this one included. Raises InputError
        when memory holds no slot, or compiling is asked for and fails."""
        assert isinstance(config.adapter, LoRA)
        self.config, self.log = config, log
        started, self.memory_before = time.monotonic(), held_bytes(torch.device(device))
        check_fits(config, lora_rank=max_lora_rank, device=device)
        own_dropout, score = config.adapter.trains_base, config.method.needs.score
        self.model = config.model.load(own_dropout=own_dropout, score=score, device=device)
        self.load_seconds = time.monotonic() - started
        self.free_bytes = free_bytes(torch.device(device))
        self.lora_config = config.adapter.config(self.model, lora_rank=max_lora_rank)
        names = target_names(self.lora_config, self.model)
        is_encoder_decoder = bool(self.model.config.is_encoder_decoder)
        self.train = TokenTable(examples.train, is_encoder_decoder=is_encoder_decoder, sources=examples.sources)
        self.eval = TokenTable(examples.eval, is_encoder_decoder=is_encoder_decoder)
        self.guard = TokenTable(examples.guard, is_encoder_decoder=is_encoder_decoder) if examples.guard else None
        """What drift is measured on, where it is."""
        self._budget_bytes = int(self.free_bytes * MEMORY_SHARE / num_sharing)
        self.capacity = choose_capacity(
            self.model, names, max_lora_rank, wanted=wanted, budget_bytes=self._budget_bytes
        )
        self.pack = self._make_pack(names, max_lora_rank, compile)
        with model_refs.initial_adapter(config.method, config.registry_dir) as folder:
            self._initial = None if folder is None else read_weights(folder, names)
        self._planner: Planner | None = None
        self._most_at_once = 0
        self._answers = self._make_answers()
        self.trials: dict[str, LiveTrial] = {}
        self._timers: dict[str, StateTimer] = {}

    def _make_pack(self, names: Sequence[str], max_lora_rank: int, compile: bool | None) -> Pack:
        compiled = compiles_by_itself(self.model.device) if compile is None else compile
        budget = PassBudget(self.capacity, 1 << 30, 128)
        sizes = {"capacity": self.capacity, "max_lora_rank": max_lora_rank}
        try:
            return Pack(self.model, names, **sizes, budget=budget, compiled=compiled)
        except CompileError as error:
            if compile:
                raise InputError(f"sweep.backend.compile=true: {error}; set it to null or false") from error
            self.log(f"packing: {error}; continuing without")
        return self._make_pack(names, max_lora_rank, False)

    def _make_answers(self) -> PackedAnswers | None:
        """What answers eval records, where trials are chosen by their answers."""
        config = self.config
        if config.answering is None:
            return None
        return PackedAnswers(self.pack, config.answering, config.model.tokenizer(), batch_size=config.eval_batch_size)

    def join(self, spec: TrialSpec, run: Run) -> tuple[list[Report], str | None]:
        """Admit a trial, from its stored checkpoint if it has one; its reports so far and, if it doesn't train on,
        why: it has ended before, or there is no memory for it ('failed: …'). Such a trial takes no slot."""
        trial_id, stored = spec.trial.id, checkpoints.latest(spec.directory)
        num_gpus = 0 if self.pack.stack.device.type == "cpu" else 1
        trial = LiveTrial(spec, run, None, num_gpus=num_gpus, resume=stored)
        ended = trial.ended
        if ended is None and not (self._takes_slot(spec, stored) or self._takes_slot(spec, stored)):
            ended = f"failed: out of memory when the trial joined {len(self.trials)} others; try fewer slots"
        if ended is None:
            self.trials[trial_id], self._timers[trial_id] = trial, StateTimer()
        else:
            run.finish({"ended": ended}, ended.startswith("failed"))
        return list(trial.history.reports), ended

    def _takes_slot(self, spec: TrialSpec, stored: str | None) -> bool:
        """Put a trial in a slot as its checkpoint's state says, or as new; False when there was no memory for it, of
        which all that is only cached has then been freed."""
        settings, terms = hyperparameters_of(spec), spec.config.method.terms
        try:
            with contextlib.ExitStack() as files:
                folder = None if stored is None else files.enter_context(checkpoints.open_state(stored))
                state = None if folder is None else TrialState.load(folder)
                self.pack.join(settings, self.train, terms, weights=self._initial, state=state)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_cached_memory()
        if spec.trial.id in self.pack.trial_ids:
            self.pack.leave(spec.trial.id)
        return False

    def reports_next(self, trial_id: str) -> bool:
        """Whether the trial's next step ends in a report."""
        return self.trials[trial_id].is_due(self.pack.steps_done(trial_id) + 1)

    def leave(self, trial_id: str, *, failed: bool = False) -> None:
        """Free a trial's slot; its checkpoint stays."""
        trial = self.trials.pop(trial_id)
        del self._timers[trial_id]
        self.pack.leave(trial_id)
        trial.run.finish({"ended": "failed" if failed else trial.ended or "stopped"}, failed)

    def advance(self) -> list[PendingReport]:
        """One step of every trial. Of those that were due for an evaluation: the report, which counts once the caller
        has published it; not before, the trial may take the step to its next report."""
        started = time.monotonic()
        steps = self.planner().step()
        due = [trial_id for trial_id, report in steps.items() if self.trials[trial_id].is_due(report.step)]
        for trial_id, report in steps.items():
            self._log_step(self.trials[trial_id], report)
        measured = self._evaluate(due)
        drifting, measured = time.monotonic(), self._with_drift(measured)
        answering, measured = time.monotonic(), self._with_answers(measured)
        ended = time.monotonic()
        for trial in self.trials.values():
            trial.history.seconds += (ended - started) / len(steps)
            trial.drift_seconds += (answering - drifting) / len(steps)
            trial.answer_seconds += (ended - answering) / len(steps)
        return [self._report(trial_id, steps[trial_id].step, measured[trial_id]) for trial_id in due]

    def _evaluate(self, due: Sequence[str]) -> dict[str, dict[str, Metric]]:
        """The eval metrics of these trials by the method's terms."""
        scores = self.pack.evaluate(self.eval, due) if due else {}
        return {trial_id: found.resamplable() for trial_id, found in scores.items()}

    def _with_drift(self, metrics: dict[str, dict[str, Metric]]) -> dict[str, dict[str, Metric]]:
        """Trials' metrics and how far they are from the base, where that is measured."""
        if self.guard is None or not metrics:
            return metrics
        scores = self.pack.evaluate(self.guard, list(metrics), drift_terms)
        return {trial_id: found | scores[trial_id].resamplable() for trial_id, found in metrics.items()}

    def _with_answers(self, metrics: dict[str, dict[str, Metric]]) -> dict[str, dict[str, Metric]]:
        """Trials' metrics and, where they are chosen by them, those of their answers: NaN where the loss isn't
        finite."""
        if self._answers is None:
            return metrics
        sound = [trial_id for trial_id, found in metrics.items() if LOSS not in found or isfinite(found[LOSS].whole())]
        answered = self._answers.metrics(sound) if sound else {}
        undefined = self._answers.answering.undefined() if len(sound) < len(metrics) else {}
        return {trial_id: found | answered.get(trial_id, undefined) for trial_id, found in metrics.items()}

    def close(self) -> None:
        """Free everything, trials as they are."""
        for trial_id in list(self.trials):
            self.leave(trial_id, failed=True)
        self.pack.close()

    def planner(self) -> Planner:
        """The planner, made at the first step, when there is a slot to measure. On a CPU it counts the process's own
        seconds: other processes there, as the proxies that start during its first measurements, would mislead it."""
        if self._planner is None:
            largest = max(hyperparameters_of(trial.spec).rows_per_pass or 1 for trial in self.trials.values())
            longest_pass = int(self.train.lengths.max()) * largest
            tokens = fit_tokens(self.pack, longest_pass, budget_bytes=self._budget_bytes)
            on_cpu = self.pack.stack.device.type == "cpu"
            if on_cpu:
                tokens = min(tokens, max(longest_pass, MOST_CPU_TOKENS))
            clock = time.process_time if on_cpu else time.perf_counter
            self._planner = Planner(self.pack, max_tokens=tokens, log=self._log_plan, clock=clock)
        return self._planner

    def _log_step(self, trial: LiveTrial, report: StepReport) -> None:
        if report.step <= trial.history.last_step:
            return  # repeated after a crash
        loss = report.metrics["loss"]
        trial.add_loss(loss)
        if report.step % LOG_EVERY == 0:
            metrics = {"loss": loss, "learning_rate": report.learning_rate, "grad_norm": report.grad_norm}
            trial.log_step(report.step, metrics)

    def _report(self, trial_id: str, step: int, measured: dict[str, Metric]) -> PendingReport:
        trial, timer = self.trials[trial_id], self._timers[trial_id]
        report = trial.report(step, wholes(measured), seconds=trial.history.seconds, saver=None)
        has_state = trial.ended is None and timer.is_due()
        saver = None
        is_best = trial.history.best.step == step
        if has_state or is_best:
            snapshot = self.pack.snapshot(trial_id, moments=has_state)
            saver = SlotSaver(snapshot, self.lora_config, self.config.model.name_or_path)
        return PendingReport(
            trial_id=trial_id,
            directory=trial.spec.directory,
            report=report,
            ended=trial.ended,
            history=replace(trial.history, reports=list(trial.history.reports)),
            saver=saver,
            timer=timer if has_state else None,
            records=measured[self.config.method.metric] if is_best and self.config.keeps_records else None,
            num_trials=len(self.trials),
        )

    def _log_plan(self, line: str) -> None:
        """Pass on the first choice and those for more trials per pass; as trials end, the planner chooses over and over
        again."""
        at_once = self.pack.budget.slots_per_pass
        if at_once > self._most_at_once:
            self._most_at_once = at_once
            self.log(line)


def compiles_by_itself(device: torch.device) -> bool:
    """Whether a pack compiles its base's pointwise parts when nobody says so: on a CPU it gains nothing."""
    return device.type != "cpu"
