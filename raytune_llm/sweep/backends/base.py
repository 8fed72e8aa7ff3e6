"""How a sweep's trials are trained: packed on resident bases, each by itself, or whichever fits.

A backend gives the tuner a Runner: what Ray Tune runs for a trial, how many at a time, and what came of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from raytune_llm.sweep.space import Plan
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.schema import SweepJob


class Runner(Protocol):
    """A backend that is running a sweep."""

    trainable: Any
    """Ray Tune's, with the resources it needs."""
    max_concurrent: int | None
    trains_on: bool
    """Whether a trial trains on while Ray Tune decides about its report, so that the decision may take a moment."""

    def outcome(self, result: Any) -> Outcome:
        """How a trial of Ray Tune ended."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Backend(Protocol):
    """What conf/sweep/backend chooses."""

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        """Why it can't run this sweep, or None. Costs no accelerator."""
        ...

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        """Begin to run. `examples` is a ray.ObjectRef of Examples."""
        ...
