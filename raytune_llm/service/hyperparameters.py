"""What a request's hyperparameters mean: which have a value, which a sweep is to find, and in which steps.

OpenAI's three (n_epochs, batch_size, learning_rate_multiplier) are "auto" where they aren't given; adapter_size where
it is asked for, and in Vertex's shape. A trial counts steps, not epochs. Where batch_size is "auto" too, all trials run
as many steps as the epochs take with the middle one of the batch sizes: trials of larger batches then see the records
more often, those of smaller ones less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.service.config import Auto
from raytune_llm.service.records import AUTO, TuningRequest
from raytune_llm.serving.api.errors import invalid

SWEPT_BY_DEFAULT = ("n_epochs", "batch_size", "learning_rate_multiplier")
WHOLE = ("batch_size", "adapter_size")
"""Those that are integers."""
OF_METHOD = {"sft": (), "dpo": ("beta",), "rlhf": (), "dss": (), "distill": ("teacher",)}
"""The methods that a request may name, and what each has besides."""
BETAS = (0.1, 0.5)
"""What beta "auto" is swept over."""
EVALUATIONS = 10
"""Of a trial, about."""

Value = int | float | str


def hyperparameters(request: TuningRequest) -> dict[str, Value]:
    """Those of a request, 'auto' or a value, the defaults included. Raises ApiError 400."""
    if request.method not in OF_METHOD:
        raise invalid(f"method: must be one of {', '.join(OF_METHOD)}", param="method")
    allowed = (*SWEPT_BY_DEFAULT, "adapter_size", *OF_METHOD[request.method])
    for name in request.hyperparameters:
        if name not in allowed:
            message = f"{name} is no hyperparameter of method {request.method}; it has {', '.join(allowed)}"
            raise invalid(message, param=name, code="unknown_parameter")
    found: dict[str, Value] = {**dict.fromkeys(SWEPT_BY_DEFAULT, AUTO), **request.hyperparameters}
    if request.api == "vertex":
        found.setdefault("adapter_size", AUTO)
    for name, value in found.items():
        if name != "teacher":
            _check(name, value)
    if request.init_adapter is not None and found.pop("adapter_size", AUTO) != AUTO:
        raise invalid(
            f"adapter_size: training continues in {request.init_adapter}, whose size is kept", param="adapter_size"
        )
    return found


def is_swept(request: TuningRequest) -> bool:
    """Whether anything is left to a sweep: its winner is named only if it is proven better. Raises ApiError 400."""
    return AUTO in hyperparameters(request).values()


def _check(name: str, value: Value) -> None:
    """Refuse what isn't a number that the command takes."""
    if value == AUTO:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or float(value) <= 0 or (name in WHOLE and not isinstance(value, int)):
        kind = "an integer ≥ 1" if name in WHOLE else "a number > 0"
        raise invalid(f'{name}: must be {kind} or "auto"; found {str(value)[:100]!r}', param=name)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where trials differ, and how long they run."""

    batch_sizes: tuple[int, ...]
    milestones: tuple[int, ...]
    """Steps at which every trial is evaluated, rising; it runs to the last one."""
    epoch_steps: int
    """With the middle batch size."""
    axes: Mapping[str, Sequence[Value]]
    """Values of the other swept keys, by key of the command."""
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        return self.milestones[-1]


def space_of(wanted: Mapping[str, Value], records: int, auto: Auto) -> Space:
    """What these hyperparameters, as `hyperparameters` gives them, make of so many records."""
    records = max(1, records)
    sizes = _chosen(wanted["batch_size"], _fitting(auto.batch_size, records))
    middle = sizes[len(sizes) // 2]
    epochs = _chosen(wanted["n_epochs"], sorted(auto.n_epochs))
    whole = [math.ceil(records * count / middle) for count in epochs]
    steps = tuple(sorted({min(count, auto.max_steps) for count in whole}))
    notes: tuple[str, ...] = ()
    if max(whole) > auto.max_steps:
        most = auto.max_steps * middle / records
        notes = (
            f"{epochs[-1]:g} epochs would take {max(whole)} steps; a trial has at most {auto.max_steps} here, which "
            f"are {most:.3g} epochs",
        )
    of_auto = {
        "tuning.learning_rate_multiplier": ("learning_rate_multiplier", auto.learning_rate_multiplier),
        "tuning.adapter_size": ("adapter_size", auto.adapter_size),
        "method.beta": ("beta", BETAS),
    }
    axes = {key: values for key, (name, values) in of_auto.items() if wanted.get(name) == AUTO}
    return Space(
        batch_sizes=tuple(sizes),
        milestones=steps,
        epoch_steps=math.ceil(records / middle),
        axes=axes,
        notes=notes,
    )


def _chosen(value: Value, of_auto: Sequence[Any]) -> Sequence[Any]:
    return of_auto if value == AUTO else [value]


def _fitting(sizes: Sequence[int], records: int) -> list[int]:
    """Batch sizes, rising, without those that are larger than the training set."""
    return sorted(size for size in sizes if size <= records) or [records]


def eval_every(space: Space) -> int:
    """Steps between evaluations: about 10 in a trial and, where epochs can be divided that way, one at the end of
    each. Milestones have their own in any case."""
    target = space.steps / EVALUATIONS
    if target <= 1:
        return 1
    divisors = [n for n in range(1, space.epoch_steps + 1) if space.epoch_steps % n == 0]
    suitable = [n for n in divisors if EVALUATIONS / 2 <= space.steps / n <= 2 * EVALUATIONS]
    return min(suitable, key=lambda n: abs(math.log(n / target)), default=round(target))


def warmup_steps(space: Space) -> int:
    """A tenth of the shortest length that a trial is judged at, at most 10."""
    return min(10, space.milestones[0] // 10)
