"""How a sweep's trials are trained: packed on resident bases, each on its own copy of the base, or whichever fits.

A backend gives the tuner a Runner: what Ray Tune runs for a trial, how many at a time, and how each ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.sweep.plan import BASE, Plan
from raytune_llm.sweep.simulation import Layout
from raytune_llm.sweep.snapshot import Load
from raytune_llm.training.config import Trial, TrialConfig, TrialSpec
from raytune_llm.training.rehearsal import Rehearsal, Script


@dataclass(frozen=True, kw_only=True)
class RunnerInputs:
    """What a backend is to run."""

    config: TrialConfig
    """What the trials have in common."""
    plan: Plan
    examples: Any
    """ray.ObjectRef of Examples."""
    use_gpu: bool
    num_trials: int
    max_concurrent: int | None
    """Trials at the same time; None = as many as the cluster holds."""
    compares_reports: bool
    """Whether the scheduler compares reports made at the same time, so that the first trials should start together."""

    @property
    def group(self) -> str:
        """The sweep's name in trackers."""
        return group_of(self.config)


class Runner(Protocol):
    """A backend that is running a sweep."""

    trainable: Any
    """Ray Tune's, with the resources it needs."""
    max_concurrent: int | None
    num_gpus: float
    """That it holds."""
    hastens: bool
    """Whether trials can be made to report at their next step."""
    overlaps_decisions: bool
    """Whether a trial continues to train while Ray Tune decides about its report, so that the decision may take a
    moment."""

    where: str
    """What its trials run on, in words."""

    def loads(self) -> Sequence[Load]:
        """How full each pack was a moment ago; nothing where trials aren't packed. Waits for no pack."""
        ...

    def fits(self, plan: Plan) -> bool:
        """Whether it can also run the trials of this plan, without being started anew."""
        ...

    def hasten(self, trial_ids: Sequence[str]) -> None:
        """Have trials report at their next step rather than at their next evaluation; nothing where it can't."""
        ...

    def rehearse(self, script: Script) -> Rehearsal | None:
        """What trials will take, measured where they will run before they come; None where it can't be."""
        ...

    def peak_bytes(self) -> int:
        """The most memory that one of its processes has held so far; 0 where that isn't known."""
        ...

    def close(self) -> None:
        """Free its resources."""
        ...


class Backend(Protocol):
    """What conf/sweep/backend chooses."""

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        """Why it can't run this sweep, or None. Costs no accelerator."""
        ...

    def start(self, inputs: RunnerInputs) -> Runner:
        """Begin to run."""
        ...

    def rehearse(self, inputs: RunnerInputs, script: Script) -> Rehearsal:
        """A few steps where trials would run. Raises InputError when a base doesn't fit there."""
        ...

    def layout(self, inputs: RunnerInputs, rehearsal: Rehearsal) -> Layout:
        """Where trials would run, and what their processes take to start."""
        ...


def group_of(config: TrialConfig) -> str:
    """A sweep's name in trackers."""
    return f"{config.name}-{config.run}"


def without_base(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's values but for its base, which all trials of a phase share."""
    return {key: value for key, value in point.items() if key != BASE}


def trial_spec(config: TrialConfig, plan: Plan, point: dict[str, Any], id: str) -> TrialSpec:
    """The trial at a point of the space."""
    trial = Trial(id=id, values=dict(point))
    return TrialSpec(config=config.with_values(plan.values(point)), trial=trial, milestones=plan.milestones)
