"""What a training or sweep will take, before it begins: trial-steps, tokens, time by phase, GPU-hours, cost, disk.

    start       reading, checking and encoding the records, Ray's start
    training    bases are loaded, trials start, step, are evaluated and end (simulation.py)
    comparing   base and tuned answer and are scored on the eval and test records; the version is published

Seconds of steps, evaluations and answers are a rehearsal's (training/rehearsal.py). What is known only afterwards is
taken from earlier trainings of the same kind (experience.py): the ratio of what they took to what was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raytune_llm.sweep.schedulers.none import NoStopping
from raytune_llm.sweep.simulation import Course, Layout, Length, Played, expected
from raytune_llm.training.rehearsal import Rehearsal

PLAYS = 15
"""Of the sweep, each with other ranks; their mean counts."""
TUNE_SECONDS = 4.0
"""Ray Tune's imports, start and end."""
TRAIN_SECONDS = 8.0
"""Ray Train's: its controller, its workers and their end."""
AGAIN_SECONDS = 2.0
"""Ray Tune's end and start between the trials and those that are trained again."""
PUBLISH_SECONDS = 1.0
"""Of a comparison's intervals, reports, and the version's files."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What a training takes, predicted or in the end."""

    start: float
    """Seconds."""
    training: float
    comparing: float
    trial_steps: float
    """Optimizer steps of all trials."""
    memory_bytes: float
    """At the most, of the process with the largest."""

    @property
    def seconds(self) -> float:
        return self.start + self.training + self.comparing

    def times(self, factors: Amounts) -> Amounts:
        """Each of them by its factor."""
        return Amounts(**{name: value * getattr(factors, name) for name, value in asdict(self).items()})

    def over(self, other: Amounts) -> Amounts:
        """The ratio of each; 1 where the other has none."""
        own = asdict(self)
        return Amounts(**{name: own[name] / value if value else 1.0 for name, value in asdict(other).items()})


UNCHANGED = Amounts(**{field.name: 1.0 for field in fields(Amounts)})


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared after training."""

    num_systems: int
    """Base, tuned, and those that the tuned model must beat."""
    prompts: tuple[int, ...]
    """Of each split that is answered: different ones."""
    examples: tuple[int, ...]
    """Of each split that is scored."""
    answer_tokens: float
    """Mean length of the records' own answers, of which a tuned model's are."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is known of the examples."""

    num_train: int
    num_eval: int
    tokens_per_example: float
    """Mean tokens of a training example through the model."""
    answered: int
    """Eval records that a trial answers at each evaluation."""
    answer_tokens: float


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the training holds of the cluster while it runs."""

    num_gpus: float
    num_nodes: int
    usd_per_hour: float | None
    """Of a GPU, or of a node where nothing computes on GPUs."""

    def usd(self, seconds: float) -> float | None:
        """The price of so many seconds; None where it isn't known."""
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour * (self.num_gpus or self.num_nodes) * seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What is trained again at the end of a sweep, and compared."""

    lengths: tuple[Length, ...]
    num_systems: int
    num_examples: int
    """That each of them is scored on."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """All that a forecast is made from."""

    lengths: tuple[Length, ...]
    course: Course
    layout: Layout
    rehearsal: Rehearsal
    data: Data
    compared: Compared
    confirmed: Confirmed | None
    device: Device
    batch_size: int
    """Of the rehearsed trial, the largest."""
    num_parameters: int
    num_trained: int
    """Weights of the largest trial."""
    start_seconds: float
    fixed_seconds: float
    """Of the training, of Ray Tune or Ray Train."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a training or sweep is expected to take."""

    workload: Workload
    raw: Amounts
    """By the rehearsal and the simulation alone."""
    factors: Amounts
    """By which earlier trainings differed from theirs."""
    based_on: int
    """Earlier trainings."""
    played: Played
    """The expected course, before `factors`."""
    longest: Played
    """The course when no trial runs out of patience."""

    @property
    def expected(self) -> Amounts:
        return self.raw.times(self.factors)

    @property
    def most_seconds(self) -> float:
        """When no trial runs out of patience."""
        surplus = self.longest.seconds - self.played.seconds
        return self.expected.seconds + max(0.0, surplus) * self.factors.training

    @property
    def reserve_seconds(self) -> float:
        """Of comparing and publishing, for which a budget must leave room."""
        return self.expected.comparing

    @property
    def tokens_per_example(self) -> float:
        return self.workload.data.tokens_per_example

    @property
    def tokens(self) -> float:
        """That trials are trained on."""
        per_step = self.workload.batch_size * self.tokens_per_example
        return self.played.sized_steps * self.factors.trial_steps * per_step

    @property
    def gpu_hours(self) -> float:
        """Of the GPUs that the trials hold, and of the one that compares."""
        device, expected = self.workload.device, self.expected
        one = min(1.0, device.num_gpus)
        return (device.num_gpus * expected.training + one * expected.comparing) / 3600

    @property
    def usd(self) -> float | None:
        return self.workload.device.usd(self.expected.seconds)

    @property
    def disk_bytes(self) -> float:
        """Of all checkpoints, at most, and of the published version: in fp32 each trial's best weights, its newest
        ones and two moments."""
        confirmed = self.workload.confirmed
        trials = len(self.workload.lengths) + (len(confirmed.lengths) if confirmed else 0)
        return 4.0 * self.workload.num_trained * (4 * trials + 1)

    def against(self, actual: Amounts) -> str:
        """Predicted and actual in a line."""
        predicted = self.expected
        parts = ", ".join(
            f"{name} {getattr(actual, key):.0f} ({getattr(predicted, key):.0f})"
            for key, name in (("start", "start"), ("training", "training"), ("comparing", "comparing and publishing"))
        )
        steps = f"{actual.trial_steps:.0f} ({predicted.trial_steps:.0f})"
        return f"{actual.seconds:.0f} s, {apart(actual.seconds, predicted.seconds)}: {parts}; steps {steps}"

    def record(self, actual: Amounts) -> dict[str, Any]:
        """What a card keeps of it, for later forecasts."""
        rehearsal = self.workload.rehearsal
        return {
            "source": rehearsal.source,
            "device": rehearsal.device,
            "num_parameters": self.workload.num_parameters,
            "num_trials": len(self.workload.lengths),
            "tokens": round(self.tokens),
            "raw": asdict(self.raw),
            "predicted": asdict(self.expected),
            "actual": asdict(actual),
        }


def make_forecast(workload: Workload, factors: Amounts = UNCHANGED, based_on: int = 0) -> Forecast:
    """The forecast of a workload, corrected by what earlier ones took."""
    played = play(workload, workload.course)
    longest = play(workload, replace(workload.course, patience=None))
    memory = workload.rehearsal.memory
    raw = Amounts(
        start=workload.start_seconds,
        training=workload.fixed_seconds + played.seconds,
        comparing=comparing_seconds(workload),
        trial_steps=played.trial_steps,
        memory_bytes=0 if memory is None else memory.peak,
    )
    return Forecast(workload=workload, raw=raw, factors=factors, based_on=based_on, played=played, longest=longest)


def play(workload: Workload, course: Course) -> Played:
    """The expected course of a workload's trials, and of those that are trained again after them."""
    costs = with_answers(workload.rehearsal, workload.data)
    plays = {"plays": PLAYS, "seed": workload.seed}
    played = expected(workload.lengths, course, workload.layout, costs, **plays)
    if workload.confirmed is None:
        return played
    layout = replace(workload.layout, first_seconds=AGAIN_SECONDS + workload.layout.next_seconds)
    endless = replace(course, scheduler=NoStopping())
    return played.then(expected(workload.confirmed.lengths, endless, layout, costs, **plays))


def with_answers(rehearsal: Rehearsal, data: Data) -> Rehearsal:
    """With the answers that a trial gives at each evaluation, whose lengths are those of the records' own."""
    if rehearsal.answering is None:
        return rehearsal
    seconds = rehearsal.answering.seconds(data.answered, data.answered * data.answer_tokens)
    return replace(rehearsal, checkpoint_seconds=rehearsal.checkpoint_seconds + seconds)


def comparing_seconds(workload: Workload) -> float:
    """Of comparing and publishing: a process starts; for each split the base is loaded and all systems answer and are
    scored. The tuned models' answers are as long as the records' own, the base's as it wrote them when rehearsed."""
    rehearsal, compared = workload.rehearsal, workload.compared
    answered = rehearsal.comparing
    seconds = rehearsal.start_seconds + PUBLISH_SECONDS
    each = rehearsal.evaluations[1] / workload.data.num_eval
    for prompts, examples in zip(compared.prompts, compared.examples, strict=True):
        seconds += rehearsal.load_seconds + PUBLISH_SECONDS
        if answered is None or not prompts:
            seconds += compared.num_systems * examples * each
        else:
            tokens = prompts * (answered.num_tokens + (compared.num_systems - 1) * compared.answer_tokens)
            seconds += answered.seconds(compared.num_systems * prompts, tokens)
    if (confirmed := workload.confirmed) is not None:
        seconds += rehearsal.load_seconds + PUBLISH_SECONDS + confirmed.num_systems * confirmed.num_examples * each
    return seconds


def apart(actual: float, predicted: float) -> str:
    """How far a prediction was off, in words."""
    return f"predicted {predicted:.0f} s ({100 * (actual / predicted - 1):+.0f} %)" if predicted else "not predicted"


def amounts_of(seconds: Mapping[str, float], *, trial_steps: float, memory_bytes: float) -> Amounts:
    """What a job's clock has counted, by its parts."""
    comparing = seconds.get("comparing and publishing", 0.0)
    training = seconds.get("training", 0.0)
    start = sum(seconds.values()) - comparing - training
    return Amounts(
        start=start, training=training, comparing=comparing, trial_steps=trial_steps, memory_bytes=memory_bytes
    )
