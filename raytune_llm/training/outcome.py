"""How a trial ended, read from its newest checkpoint: the same for every backend."""

from __future__ import annotations

from raytune_llm.training.config import Outcome, TrialSpec
from raytune_llm.training.history import History


def read_outcome(
    spec: TrialSpec, checkpoint: str | None, error: BaseException | str | None, stopped: str = "scheduler"
) -> Outcome:
    """`checkpoint`: folder or URI of the trial's newest one, None when it left none; `error`: what it failed with;
    `stopped`: why it ended if it would have trained on."""
    failed = None if error is None else f"failed: {error}"
    if checkpoint is None:
        ended = failed or f"failed: {stopped} before its first report"
        return Outcome(trial=spec.trial, reports=(), best=None, checkpoint=None, seconds=0.0, ended=ended)
    config = spec.config
    history = History.load(checkpoint, config.objective)
    return Outcome(
        trial=spec.trial,
        reports=tuple(history.reports),
        best=history.best,
        checkpoint=checkpoint,
        seconds=history.seconds,
        ended=failed or history.why_ended(config.tuning.early_stopping, config.tuning.steps) or stopped,
    )
