"""From a request to the command that runs it, with what it is expected to take.

A command is ("raytune-llm", NAME, "key=value", …): anybody can run it by hand. Its values are numbers, names that were
checked, offered bases, locations and what the operator configured; texts are quoted for Hydra (stores/quoting.py), so
that none becomes another key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.errors import InputError, check_name
from raytune_llm.models.cost import PADDED, training_seconds
from raytune_llm.service.config import Service
from raytune_llm.service.hyperparameters import (
    OF_METHOD,
    Space,
    eval_every,
    hyperparameters,
    is_swept,
    space_of,
    warmup_steps,
)
from raytune_llm.service.records import AUTO, DataRef, Estimate, TuningRequest, owns_name
from raytune_llm.serving.api.errors import invalid
from raytune_llm.stores.quoting import override

__all__ = ["DataFacts", "Planned", "check_command", "is_swept", "plan"]

PROGRAM = "raytune-llm"
CHECKED = ("model", "data", "method", "evaluation")
"""Groups of keys that `check` has."""
OF_SWEEPS = ("sweep", "serve")
"""Those that `train` doesn't have."""
OF_REQUESTS = ("home", "name", "run", "report", "model", "method", "seed")
DEFAULT_AXES = ("tuning.steps", "tuning.learning_rate_multiplier", "tuning.adapter_size")
"""Of conf/sweep/default.yaml: each is a key of every sweep's space until it is taken out."""
VERSION = re.compile(r"([A-Za-z0-9][\w.-]*)@([\w.-]+)", re.ASCII)
LABEL = re.compile(r"\w[\w .:-]{0,127}", re.ASCII)
"""What may be sent to Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the data check found in a job's files (report.json)."""

    train_records: int
    train_tokens: int
    """Of one pass over the training set, prompts and completions, cut as they are trained on."""
    parameters: int
    """Of the base."""

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> DataFacts:
        """Those of a report.json, as json.loads gives it."""
        train = report["splits"]["train"]
        lengths = [train[name] for name in ("prompt_tokens", "completion_tokens") if train[name] is not None]
        return cls(
            train_records=train["num_records"],
            train_tokens=sum(found["total"] for found in lengths),
            parameters=report["parameters"] or 0,
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job's command."""

    command: tuple[str, ...]
    """("raytune-llm", "sweep", "home=…", …): what anybody can run by hand."""
    estimate: Estimate
    notes: tuple[str, ...] = ()
    """What its owner should know of it."""


class Planner(Protocol):
    """From requests to commands, for one service."""

    def check_command(self, request: TuningRequest, folder: str) -> tuple[str, ...]:
        """The command that checks a request's files and writes report.json into a folder."""
        ...

    def plan(self, request: TuningRequest, facts: DataFacts, *, has_gpu: bool) -> Planned:
        """What runs it. Raises ApiError 400 for values that the command would refuse."""
        ...


def check_command(request: TuningRequest, service: Service, home: str, folder: str) -> tuple[str, ...]:
    """The command that checks a request's files and writes report.json into a folder. Raises ApiError 400."""
    operators = {key: value for key, value in _operators(service).items() if _group(key) in CHECKED}
    keys = {"home": home, **_model(request, service), **operators, **_data(request), "report": folder}
    return (PROGRAM, "check", *_written(keys))


def plan(
    request: TuningRequest,
    facts: DataFacts,
    service: Service,
    home: str,
    *,
    has_gpu: bool,
    teachers: Mapping[str, str] | None = None,
) -> Planned:
    """`train` where every hyperparameter has a value, `sweep` over those that are "auto". Raises ApiError 400 for a
    value that the command would refuse.

    teachers: name_or_path of each offered base, by the name it is offered by.
    """
    wanted = hyperparameters(request)
    space = space_of(wanted, facts.train_records, service.auto)
    is_sweep = AUTO in wanted.values()
    operators = _operators(service)
    if not is_sweep:
        operators = {key: value for key, value in operators.items() if _group(key) not in OF_SWEEPS}
    trackers = _tracking(request, operators)
    if request.wandb is None:
        operators = {key: value for key, value in operators.items() if not key.startswith("tracking.wandb.")}
    rhythm = {"tuning.eval_every": eval_every(space), "tuning.warmup_steps": warmup_steps(space)}
    keys = {
        "home": home,
        "name": _checked_name(request.name),
        "run": request.run,
        **_model(request, service),
        **{key: value for key, value in rhythm.items() if key not in operators},
        **operators,
        **_data(request),
        **_method(request, wanted, service, teachers or {}),
        **_tuning(wanted, space, is_sweep=is_sweep),
        **trackers,
    }
    decays = operators.get("tuning.schedule", "constant") != "constant"
    estimate = _estimate(space, facts, has_gpu=has_gpu, decays=decays)
    return Planned(
        command=(PROGRAM, "sweep" if is_sweep else "train", *_written(keys)), estimate=estimate, notes=space.notes
    )


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; an empty mapping is a value."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _operators(service: Service) -> dict[str, Any]:
    """What every job has, but for what only a request decides."""
    return {key: value for key, value in flat(service.overrides) if key not in OF_REQUESTS}


def _group(key: str) -> str:
    return re.split(r"[./]", key, maxsplit=1)[0]


def _written(keys: Mapping[str, Any]) -> list[str]:
    try:
        return [override(key, value) for key, value in keys.items()]
    except InputError as error:
        raise invalid(str(error)) from error


def _checked_name(name: str) -> str:
    try:
        check_name("suffix", name)
    except InputError as error:
        raise invalid(str(error), param="suffix") from error
    return name


def _model(request: TuningRequest, service: Service) -> dict[str, Any]:
    if request.base not in service.models:
        offered = ", ".join(service.models)
        raise invalid(f"model: {request.model} can't be tuned here; offered: {offered}", param="model")
    return {"model": request.base}


def _data(request: TuningRequest) -> dict[str, Any]:
    """Method, records and seed."""
    if request.method not in OF_METHOD:
        raise invalid(f"method: must be one of {', '.join(OF_METHOD)}", param="method")
    found = {"method": request.method, "data.train": _location(request.training, "training_file")}
    if request.validation is not None:
        found["data.eval"] = _location(request.validation, "validation_file")
    return {**found, "seed": request.seed}


def _location(data: DataRef, param: str) -> str:
    """A location that means one place: no references, no way up."""
    location = data.location
    if "${" in location or ".." in re.split(r"[/\\]", location) or not location.isprintable():
        raise invalid(f"{param}: {data.name[:200]!r} is not allowed as a location", param=param)
    return location


def _method(
    request: TuningRequest, wanted: Mapping[str, Any], service: Service, teachers: Mapping[str, str]
) -> dict[str, Any]:
    """The method's own keys."""
    found: dict[str, Any] = {}
    if request.init_adapter is not None:
        if not VERSION.fullmatch(request.init_adapter):
            raise invalid(f"model: {request.init_adapter} is no version", param="model")
        found["method.init_adapter"] = request.init_adapter
    if wanted.get("beta") == AUTO:
        # the loss of one beta says nothing about that of another
        found["method.metric"] = "eval/rewards/accuracies"
    elif "beta" in wanted:
        found["method.beta"] = wanted["beta"]
    teacher = wanted.get("teacher", request.base)
    if teacher != request.base:
        found["method.teacher"] = _teacher(str(teacher), request, service, teachers)
    return found


def _teacher(given: str, request: TuningRequest, service: Service, teachers: Mapping[str, str]) -> str:
    """Where a teacher is: another offered base, or a version of the request's owner."""
    if given in service.models and given in teachers:
        return teachers[given]
    version = VERSION.fullmatch(given)
    if version is None or not owns_name(request.owner, version[1]):
        known = ", ".join(service.models)
        raise invalid(f"teacher: {given[:200]!r} is neither an offered base ({known}) nor a version", param="teacher")
    return given


def _tuning(wanted: Mapping[str, Any], space: Space, *, is_sweep: bool) -> dict[str, Any]:
    """Steps, batch size, rate and adapter size: values, and the axes of the space in place of the default ones."""
    found: dict[str, Any] = {}
    axes: dict[str, Any] = dict.fromkeys(DEFAULT_AXES) if is_sweep else {}
    if wanted["n_epochs"] == AUTO:
        axes["tuning.steps"] = list(space.milestones)
    else:
        found["tuning.steps"] = space.steps
    if wanted["batch_size"] == AUTO:
        axes["tuning.batch_size"] = list(space.batch_sizes)
    else:
        found["tuning.batch_size"] = wanted["batch_size"]
    for name in ("learning_rate_multiplier", "adapter_size"):
        if wanted.get(name, AUTO) != AUTO:
            found[f"tuning.{name}"] = wanted[name]
    axes |= {key: list(values) for key, values in space.axes.items()}
    return found | {f"sweep.space.{key}": values for key, values in axes.items()}


def _tracking(request: TuningRequest, operators: Mapping[str, Any]) -> dict[str, Any]:
    """Weights & Biases in addition to the operator's trackers. A run's name there is its trial's, so the name that the
    client gave becomes a tag."""
    if request.wandb is None:
        return {}
    given = {key: value for key, value in request.wandb.items() if value}
    tags = [*given.get("tags", ()), *([given["name"]] if "name" in given else ())]
    for text in (given.get("project"), given.get("entity", "x"), *tags):
        if not isinstance(text, str) or not LABEL.fullmatch(text):
            allowed = "letters, digits, spaces and _ . : -, at most 128"
            raise invalid(f"integrations: {text!r} is not allowed; allowed: {allowed}", param="integrations")
    own = operators.get("tracking", "none")
    others = [name for name in (own if isinstance(own, list | tuple) else [own]) if name not in ("none", "wandb")]
    found = {"tracking": [*others, "wandb"] if others else "wandb", "tracking.wandb.project": given["project"]}
    if "entity" in given:
        found["tracking.wandb.entity"] = given["entity"]
    return found | ({"tracking.wandb.tags": tags} if tags else {})


def _estimate(space: Space, facts: DataFacts, *, has_gpu: bool, decays: bool) -> Estimate:
    """decays: whether step counts are trials of their own, as the rate's schedule looks at them."""
    records = max(1, facts.train_records)
    lengths = space.milestones if decays else space.milestones[-1:]
    epochs = [steps * size / records for steps in lengths for size in space.batch_sizes]
    others = math.prod(map(len, space.axes.values()))
    tokens = round(facts.train_tokens * sum(epochs) * others)
    seconds = training_seconds(facts.parameters, PADDED * tokens, has_gpu=has_gpu)
    return Estimate(
        records=facts.train_records,
        epochs=round(max(epochs), 3),
        tokens=tokens,
        trials=len(epochs) * others,
        device_hours=seconds / 3600,
    )
