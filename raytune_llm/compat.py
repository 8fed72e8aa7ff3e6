"""Calls into other projects' private interfaces, on the versions that this project pins.

Each is one function here; a test of it fails when the interface has moved.
"""

from __future__ import annotations

from typing import Any


def resume_trial(tune_controller: Any, trial: Any) -> None:
    """Let a trial continue whose report a scheduler of Ray Tune answered with NOOP, for which there is no public call.
    `tune_controller` is what the scheduler's methods receive."""
    tune_controller._tune_controller._schedule_trial_train(trial)
