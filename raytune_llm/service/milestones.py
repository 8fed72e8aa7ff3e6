"""What each change of a job's status says to its owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raytune_llm.data.findings import many
from raytune_llm.service.records import Estimate, State, Status, TuningRequest

Line = tuple[str, str]
"""Level (info, warn or error) and message."""


def milestones(request: TuningRequest, status: Status, number: int) -> list[Line]:
    """The events of a status's change, by its number, from 1."""
    states = [State(name) for name, _ in status.changes[:number]]
    return _OF[states[-1]](request, status, states)


def _validating(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    files = f"training file: {request.training.name}"
    if request.validation is not None:
        files += f" and validation file: {request.validation.name}"
    created = [("info", f"Created fine-tuning job: {request.id}")] if len(states) == 1 else []
    return [*created, ("info", f"Validating {files}")]


def _queued(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    if states[-2:-1] == [State.paused]:
        return [("info", "Fine-tuning job resumed, moving job to queued state")]
    if states[-2:-1] == [State.running]:
        return [("warn", "The cluster lost the run; it will continue from its last checkpoint")]
    estimate = [] if status.estimate is None else [("info", _in_words(status.estimate))]
    notes = [("info", note) for note in status.plan_notes]
    return [("info", "Files validated, moving job to queued state"), *estimate, *notes]


def _in_words(estimate: Estimate) -> str:
    epochs = f"{estimate.epochs:g} epoch{'' if estimate.epochs == 1 else 's'}"
    trials = "" if estimate.trials == 1 else f", {estimate.trials} trials"
    return (
        f"Estimated: {many(estimate.records, 'record')} × {epochs}{trials}, {estimate.tokens:,} training tokens, "
        f"about {estimate.device_hours:.2g} device hours"
    )


def _running(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    started = states.count(State.running)
    if started == 1:
        return [("info", "Fine-tuning job started")]
    return [("info", f"Fine-tuning job started again (attempt {started}), from its last checkpoint where it has one")]


def _paused(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    note = status.note if len(states) == len(status.changes) else None
    return [("warn" if note else "info", "Fine-tuning job paused" + (f": {note}" if note else ""))]


def _cancelled(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    note = f": {status.note}" if status.note else ""
    return [("warn" if note else "info", f"Fine-tuning job cancelled{note}")]


def _failed(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    assert status.error is not None
    return [("error", f"The job failed: {status.error.message}")]


def _succeeded(request: TuningRequest, status: Status, states: list[State]) -> list[Line]:
    result = status.result
    assert result is not None
    if result.is_named:
        model = ("info", f"New fine-tuned model created: {result.version}")
    else:
        model = (
            "warn",
            f"No model is named: {result.version} is not better than what it was compared with by more than chance; "
            f"it can be used by that name all the same",
        )
    return [("info", result.text), model, ("info", "The job has successfully completed")]


_OF: Mapping[State, Callable[[TuningRequest, Status, list[State]], list[Line]]] = {
    State.validating_files: _validating,
    State.queued: _queued,
    State.running: _running,
    State.paused: _paused,
    State.succeeded: _succeeded,
    State.failed: _failed,
    State.cancelled: _cancelled,
}
