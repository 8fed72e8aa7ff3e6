"""A resident base as a long-lived Ray actor, on one GPU or some CPUs: trials join it, fetch their next report, and
leave.

One thread trains; it steps all trials together, past an evaluation while its report is being stored and decided on,
and waits before the next one of a trial whose last report hasn't been accepted. Those steps of a trial that is then
stopped are lost. Another thread stores reports; a caller gets a report once its checkpoint is whole, so none that Ray
Tune has seen is lost. Callers hold a lease: a trial that nobody called about for LEASE_SECONDS is freed, so that a lost
driver leaves no slot taken. An actor that died is restarted by Ray, empty; its trials join again from their
checkpoints. After an error that breaks the GPU's context the actor ends itself, for only a new process can use the GPU.

Four things of a trial meet here, each under one owner: `packed` belongs to the training thread, a PendingReport to the
writer's, a TrialHandle to whoever holds the lock, and a TrialSpec in `joining` waits for the training thread.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from raytune_llm.cluster import gc_paused
from raytune_llm.errors import InputError
from raytune_llm.training import checkpoints
from raytune_llm.training.attempts import device_here, note_attempt
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.history import stored_step
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.checkpoint_writer import CheckpointWriter
from raytune_llm.training.rehearsal import Rehearsal, Script
from raytune_llm.training.tracking.background import flush
from raytune_llm.training.trial_log import start_run

if TYPE_CHECKING:
    from raytune_llm.training.packed.pending_report import PendingReport
    from raytune_llm.training.packed.trials import PackedTrials

LEASE_SECONDS = 60.0
WAIT_SECONDS = 10.0
"""Longest time a call waits for a report before it is answered with none yet."""
GATHER_SECONDS = 10.0
"""How long the trials that are to start together wait for the next of them to join; on a busy machine their processes
start seconds apart."""
EXIT_SECONDS = 1.0
"""How long an actor that has lost its GPU still answers, so that its callers learn why."""


class DeviceLostError(RuntimeError):
    """The actor's process can use its GPU no more; it ends, and Ray starts another."""


@dataclass
class TrialHandle:
    """A trial as its caller sees it."""

    reports: deque[Report] = field(default_factory=deque)
    """Not yet fetched."""
    ended: str | None = None
    admitted: bool = False
    """Whether the pack trains it on this caller's behalf."""
    is_stored: bool = True
    """Whether its last report has been stored; until then callers don't know of it."""
    accepted: bool = False
    """Whether its last report has been accepted and the next one is wanted."""
    contact: float = field(default_factory=time.monotonic)
    """When it was last called about."""


class PackActor:
    """Methods are called by many proxies at once; each holds the lock except while it waits."""

    def __init__(
        self,
        config: TrialConfig,
        examples: bytes,
        group: str,
        *,
        wanted: int,
        max_lora_rank: int,
        threads: int,
        use_gpu: bool,
        compile: bool | None,
        num_sharing: int,
        logs_plan: bool,
        start_together: bool,
    ) -> None:
        """`config`: what the trials have in common. `examples` is a pickled ray.ObjectRef: one among the arguments
        would make Ray warn that it can't outlive its owner. One of several actors `logs_plan`, its planner's choice;
        the others choose alike. For a scheduler that compares reports the first `wanted` trials `start_together`."""
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        self.refused: InputError | None = None
        """Why there is no pack; raised by `capacity`, since of an actor that can't be made Ray keeps only the text."""
        try:
            self.packed = load_pack(
                config,
                examples,
                threads,
                wanted=wanted,
                max_lora_rank=max_lora_rank,
                device="cuda" if use_gpu else "cpu",
                compile=compile,
                num_sharing=num_sharing,
                log=partial(print, flush=True) if logs_plan else lambda line: None,
            )
        except InputError as error:
            self.refused = error
            return
        self.group, self.device = group, device_here(use_gpu=use_gpu)
        self.handles: dict[str, TrialHandle] = {}
        self.joining: deque[TrialSpec] = deque()
        self.num_starting = self.packed.capacity if start_together else 0
        """How many are to start together; 0 once they have."""
        self.last_joined = time.monotonic()
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.stopping = False
        self.is_lost = False
        self.writer = CheckpointWriter(self._published, self._fail)
        self.thread = threading.Thread(target=self._train, name="pack", daemon=True)
        self.thread.start()

    def capacity(self) -> int:
        """Slots in all. Raises InputError when there is no memory for the base or a slot."""
        if self.refused is not None:
            raise self.refused
        return self.packed.capacity

    def num_free(self) -> int:
        with self.changed:
            return self.packed.capacity - len(self.handles)

    def rehearse(self, script: Script, start_seconds: float) -> Rehearsal:
        """What trials will take, before any has come. `start_seconds`: that this actor has taken to start."""
        from raytune_llm.training.packed.rehearsal import rehearse

        with self.changed:
            assert not self.handles, "trials have come already"
            return rehearse(self.packed, script, start_seconds=start_seconds)

    def peak_bytes(self) -> int:
        """The most memory of its device that it has held."""
        from raytune_llm.models.memory import peak_bytes

        return peak_bytes(self.packed.pack.stack.device)

    def join(self, spec: TrialSpec) -> bool:
        """Admit a trial at the next step; False when no slot is free. A trial that is in already starts over from its
        checkpoint."""
        trial_id = spec.trial.id
        self.leave(trial_id)
        with self.changed:
            self._check()
            if len(self.handles) >= self.packed.capacity:
                return False
            self.handles[trial_id] = TrialHandle(accepted=True)
            self.joining.append(spec)
            self.last_joined = time.monotonic()
            self.changed.notify_all()
        return True

    def next(self, trial_id: str) -> tuple[list[Report], str | None]:
        """The trial's new reports and, after its last one, why it ended; ([], None) when there is nothing yet. A call
        means that the reports before have been accepted and training may continue."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self.changed:
            while True:
                self._check()
                handle = self.handles.get(trial_id)
                if handle is None:
                    raise KeyError(f"trial {trial_id} has no slot here")
                handle.contact = time.monotonic()
                if handle.reports or handle.ended or time.monotonic() >= deadline:
                    break
                if not handle.accepted and handle.is_stored:
                    handle.accepted = True  # notifying wakes this call too: to repeat it would never end
                    self.changed.notify_all()
                self.changed.wait(deadline - time.monotonic())
            reports = list(handle.reports)
            handle.reports.clear()
            handle.accepted = not reports and handle.ended is None
            if handle.ended:
                del self.handles[trial_id]
            return reports, handle.ended

    def leave(self, trial_id: str) -> None:
        """Free the trial's slot, if it has one. From then on nothing here touches its checkpoint."""
        with self.changed:
            self._drop(trial_id)
            self.changed.notify_all()
        self.writer.flush(trial_id)

    def hasten(self, trial_ids: Sequence[str]) -> None:
        """Have trials report at their next step, for which they no longer wait for others; those that aren't here are
        left out."""
        with self.changed:
            self.num_starting = 0
            for trial_id in trial_ids:
                if trial_id in self.packed.trials:
                    self.packed.trials[trial_id].is_hastened = True
            self.changed.notify_all()

    def stop(self) -> None:
        """End training, write what is left and close every tracker."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join()

    def _check(self) -> None:
        if self.failure is not None:
            kind = DeviceLostError if self.is_lost else RuntimeError
            raise kind(f"packed training failed: {self.failure}") from self.failure

    def _drop(self, trial_id: str) -> None:
        self.handles.pop(trial_id, None)
        self.joining = deque(spec for spec in self.joining if spec.trial.id != trial_id)

    def _train(self) -> None:
        try:
            while self._wait():
                self._submit(self.packed.advance())
        except BaseException as error:
            self._fail(error)
        finally:
            self.writer.close()
            self.packed.close()
            flush()

    def _fail(self, error: BaseException) -> None:
        """End training, and have every call raise the error. When only a new process can use the GPU, end this one."""
        from raytune_llm.models.device_errors import is_device_lost

        logging.getLogger(__name__).error("packed training failed", exc_info=error)
        with self.changed:
            self.failure, self.is_lost = error, is_device_lost(error)
            self.changed.notify_all()
        if self.is_lost:
            time.sleep(EXIT_SECONDS)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _wait(self) -> bool:
        """Bring the pack's trials up to date; return when all of them may take a step, or False to end."""
        with self.changed:
            while not self.stopping and self.failure is None:
                self._update_trials()
                ids = list(self.packed.trials)
                decided = all(self.handles[id].accepted or not self.packed.reports_next(id) for id in ids)
                if ids and decided and not self._gathers():
                    self.num_starting = 0
                    return True
                self.changed.wait(1.0)
        return False

    def _gathers(self) -> bool:
        """Whether to wait for more of the trials that are to start together."""
        missing = len(self.packed.trials) < self.num_starting
        return missing and time.monotonic() < self.last_joined + GATHER_SECONDS

    def _update_trials(self) -> None:
        """Free the trials that left or whose lease ran out; admit those that are joining."""
        now = time.monotonic()
        for trial_id in [i for i, handle in self.handles.items() if now - handle.contact > LEASE_SECONDS]:
            self._drop(trial_id)
        for trial_id in [i for i in self.packed.trials if i not in self.handles]:
            self.packed.leave(trial_id)
        while self.joining:
            self._admit(self.joining.popleft())
            self.changed.notify_all()

    def _admit(self, spec: TrialSpec) -> None:
        trial_id = spec.trial.id
        if trial_id in self.packed.trials:
            self.packed.leave(trial_id)
        from_step = stored_step(checkpoints.latest(spec.directory))
        run = start_run(spec, self.group, from_step=from_step)
        note_attempt(spec.directory, self.device, from_step=from_step)
        reports, ended = self.packed.join(spec, run)
        handle = self.handles[trial_id]
        handle.reports.extend(reports)
        handle.admitted, handle.accepted, handle.ended = True, not reports, ended

    def _submit(self, reports: list[PendingReport]) -> None:
        """Have the reports stored, of trials that haven't left meanwhile. One that has ended frees its slot."""
        if not reports:
            return
        with self.changed:
            for pending in reports:
                handle = self.handles.get(pending.trial_id)
                if handle is not None and handle.admitted:
                    handle.accepted = handle.is_stored = False
                    self.writer.submit(pending)
                if pending.ended is not None:
                    self.packed.leave(pending.trial_id)

    def _published(self, pending: PendingReport) -> None:
        """Let the trial's caller have a report that has been stored."""
        with self.changed:
            handle = self.handles.get(pending.trial_id)
            if handle is not None and handle.admitted:
                handle.reports.append(pending.report)
                handle.is_stored, handle.ended = True, pending.ended
                self.changed.notify_all()


def load_pack(config: TrialConfig, examples: bytes, threads: int, **options: Any) -> PackedTrials:
    """PackedTrials in a process that has imported no torch yet; `examples` as for the actor."""
    with gc_paused():
        import torch

        from raytune_llm.training.packed.trials import PackedTrials

        torch.set_num_threads(threads)
        return PackedTrials(config, ray.get(ray.cloudpickle.loads(examples)), **options)
