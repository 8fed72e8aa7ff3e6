"""What a rehearsal is asked and what it finds: a few real steps, evaluations and answers, measured before a training.
Nothing of them is kept.

packed/rehearsal.py rehearses a pack, trainer_rehearsal.py a trial with a base of its own. Light: the driver reads what
was found, so this imports neither torch nor transformers. Leaves out what is made of it (sweep/forecast.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from raytune_llm.training.config import TrialSpec

LEAST_SECONDS = 3.0
"""How long a rehearsal may measure however short the training is."""
SHARE = 0.02
"""Of the training's time that a rehearsal may measure for."""
SHARE_OF_BUDGET = 0.03
"""Of the time that a budget leaves, however short."""
MOST_SECONDS = 60.0
"""How long it may measure however long the training is; a step that has begun ends."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is answered in a rehearsal of greedy answers."""

    prompts: tuple[list[int], ...]
    """Token ids of some of the prompts, drawn at even distances."""
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    batch_size: int
    """Prompts of one system at once."""
    threads: int
    """That a CPU answers with."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What is rehearsed."""

    spec: TrialSpec
    """The largest trial: the largest adapter and batch of all."""
    trial_steps: int
    """Steps that the busiest device takes at most, all its trials together: what a rehearsal's time is measured by."""
    asked: Asked | None
    """By the comparison after training; None where it answers nothing."""
    most_seconds: float = MOST_SECONDS
    """That each thing may be measured for."""

    def limit(self, seconds_per_step: float) -> float:
        """Seconds that measuring may take, by those of one trial's step."""
        return min(self.most_seconds, max(LEAST_SECONDS, SHARE * self.trial_steps * seconds_per_step))

    def within(self, seconds: float) -> Script:
        """For a training that may take no longer than this."""
        return replace(self, most_seconds=min(self.most_seconds, SHARE_OF_BUDGET * seconds))


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What greedy answers take: read_seconds for each prompt, token_seconds for each token."""

    read_seconds: float
    token_seconds: float
    num_tokens: float
    """Mean length of the base's own answers; at most max_new_tokens."""

    def seconds(self, num_prompts: float, num_tokens: float) -> float:
        """Of answering so many prompts with so many tokens in all."""
        return self.read_seconds * num_prompts + self.token_seconds * num_tokens


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a process with a base and its trials holds, in bytes: of a GPU's memory, or of the process."""

    base: int
    slots: int
    """Weights, gradients and moments of all trials."""
    others: int
    """Of the process before the base was loaded; 0 on a GPU."""
    peak: int
    """The most that was held at once."""
    free: int
    """That the device had free for it, before the base was loaded."""

    @property
    def activations(self) -> int:
        """The rest of the peak: activations, workspaces, and what loading the base holds for a moment."""
        return max(0, self.peak - self.base - self.slots - self.others)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was measured, or guessed from sizes alone (sweep/guess.py)."""

    source: str
    """measured or guessed."""
    device: str
    """Name of the GPU, or of the CPU."""
    start_seconds: float
    """From asking for a process until the base is on its device."""
    load_seconds: float
    """Of loading the base in a process that has all its imports."""
    steps: Mapping[int, float]
    """Seconds of a step, by the number of trials that take it together."""
    evaluations: Mapping[int, float]
    """Seconds of an evaluation on all eval records, by the number of trials that are evaluated together."""
    checkpoint_seconds: float
    """Of a trial's report, in addition."""
    answering: Answered | None
    """Of trials that are chosen by their answers."""
    comparing: Answered | None
    """By the comparison after training; None where it answers nothing, or nothing was measured."""
    capacity: int
    """Trials that a base takes at once."""
    memory: Memory | None
    spent_seconds: float
    """That measuring took, without start_seconds."""

    def step_seconds(self, count: int) -> float:
        """Of a step of so many trials."""
        return between(self.steps, count)

    def evaluation_seconds(self, count: int) -> float:
        """Of an evaluation of so many trials, their checkpoints included."""
        return between(self.evaluations, count) + count * self.checkpoint_seconds


def between(table: Mapping[int, float], count: int) -> float:
    """The value at `count` on the line through the nearest entries of a table by counts; in proportion to the count
    beyond its ends."""
    lower = max((key for key in table if key <= count), default=None)
    upper = min((key for key in table if key >= count), default=None)
    if lower is None or upper is None:
        nearest = lower if lower is not None else upper
        assert nearest is not None, "an empty table"
        return table[nearest] * count / nearest
    if lower == upper:
        return table[lower]
    share = (count - lower) / (upper - lower)
    return table[lower] + share * (table[upper] - table[lower])


def together(found: list[Rehearsal]) -> Rehearsal:
    """Rehearsals that were made at the same time as one: their mean seconds, the largest memory."""
    first = found[0]
    memories = [one.memory for one in found if one.memory is not None]
    return Rehearsal(
        source=first.source,
        device=first.device,
        start_seconds=mean(one.start_seconds for one in found),
        load_seconds=mean(one.load_seconds for one in found),
        steps={count: mean(one.step_seconds(count) for one in found) for count in first.steps},
        evaluations={count: mean(between(one.evaluations, count) for one in found) for count in first.evaluations},
        checkpoint_seconds=mean(one.checkpoint_seconds for one in found),
        answering=first.answering,
        comparing=first.comparing,
        capacity=min(one.capacity for one in found),
        memory=max(memories, key=lambda memory: memory.peak, default=None),
        spent_seconds=max(one.spent_seconds for one in found),
    )


def device_name(use_gpu: bool) -> str:
    """What this process computes on."""
    if use_gpu:
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
