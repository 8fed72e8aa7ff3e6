"""Public benchmarks: tasks of EleutherAI's lm-evaluation-harness (Gao et al., 2024, doi:10.5281/zenodo.12608602).

The only file that knows the package lm_eval. Base and tuned model answer the same requests, so a difference has the
standard error of the paired differences where a metric is a mean over examples; else of two independent values. Leaves
out multimodal tasks and those that run code which a model wrote.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytune_llm.errors import InputError, first_line, require
from raytune_llm.evaluation.compare import number
from raytune_llm.evaluation.harness_config import Harness

KEY = "evaluation.harness.tasks"


@dataclass(frozen=True)
class HarnessRow:
    """One metric of one task."""

    task: str
    metric: str
    """With its filter where that isn't `none`, as name,filter."""
    num_examples: int | None
    """None for a group of tasks."""
    base: float
    tuned: float
    difference: float
    """Of tuned minus base."""
    stderr: float
    """Standard error of the difference; NaN where the harness gives none."""
    higher_is_better: bool | None


def task_manager(harness: Harness) -> Any:
    """The harness's index of tasks, which has all that are named. Raises InputError where the package is missing or a
    name is unknown."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"{KEY}={harness.tasks} needs the package lm_eval; install it with: pip install 'raytune-llm[harness]'"
        ) from error
    quiet_harness()
    if (folder := harness.include_path) is not None:
        require(os.path.isdir(folder), "evaluation.harness.include_path", folder, "a folder that exists")
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(harness.tasks) <= set(own.all_subtasks):  # the whole index takes half a minute of a slow core
            return own
    manager = TaskManager(include_path=harness.include_path)
    for name in harness.tasks:
        check_task_name(name, manager.all_tasks)
    return manager


def load_tasks(harness: Harness, manager: Any) -> Mapping[str, Any]:
    """The tasks with their data, by `tasks`, `groups` and `group_map`. Raises InputError where a task is of a kind that
    is left out, is named twice, or its data can't be read."""
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in harness.tasks:
        for kind, found in _load(manager, name).items():
            twice = sorted(set(found) & set(loaded[kind]))
            require(not twice, KEY, harness.tasks, f"no task twice; {name} has {', '.join(twice)} once more")
            loaded[kind].update(found)
    for name, task in loaded["tasks"].items():
        _check_task(name, task)
    return loaded


def check_task_name(name: str, known: Sequence[str]) -> None:
    """Raise InputError for a task that isn't known, naming the nearest."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        nearest = f"nearest: {', '.join(near)}" if near else "no name is near"
        raise InputError(
            f"{KEY}: no task {name} among the {len(known)} of lm_eval and evaluation.harness.include_path; {nearest} "
            "(lm_eval ls tasks lists all)"
        )


def run_tasks(
    model: Any, tokenizer: Any, harness: Harness, manager: Any, *, num_draws: int, seed: int
) -> dict[str, Any]:
    """What the harness finds for a model. num_draws: resamples behind a standard error that has no closed form; seed:
    of the solved examples in prompts. Raises InputError as `load_tasks`."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    os.environ["DISABLE_MULTIPROC"] = "1"  # its own pool would fork a process with threads
    loaded = load_tasks(harness, manager)
    for task in loaded["tasks"].values():
        _set_fewshot(task, harness.num_fewshot, seed)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars, which can't be turned off
        found: dict[str, Any] = evaluate(
            lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=harness.batch_size),
            task_dict=loaded,
            limit=harness.limit,
            bootstrap_iters=num_draws,
            apply_chat_template=harness.apply_chat_template,
        )
    return found


def rows_of(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[HarnessRow]:
    """Each metric of each task, from the harness's results for base and tuned model."""
    return [
        _row(task, key, base, tuned)
        for task, values in base["results"].items()
        for key, value in values.items()
        if isinstance(value, float) and "," in key and not key.partition(",")[0].endswith("_stderr")
    ]


def table(rows: Sequence[HarnessRow]) -> list[list[str]]:
    """For a report, the header first."""
    header = ["task", "metric", "better", "examples", "base", "tuned", "difference", "stderr"]
    found = [header]
    for row in rows:
        direction = {None: "", True: "higher", False: "lower"}[row.higher_is_better]
        count = "" if row.num_examples is None else str(row.num_examples)
        stderr = "" if math.isnan(row.stderr) else number(row.stderr)
        values = [number(row.base), number(row.tuned), number(row.difference, sign=True), stderr]
        found.append([row.task, row.metric, direction, count, *values])
    return found


def quiet_harness() -> None:
    """No messages of lm_eval below errors, no progress bars of datasets."""
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def _load(manager: Any, name: str) -> Mapping[str, Any]:
    import yaml

    errors = (OSError, ValueError, KeyError, TypeError, ImportError, yaml.YAMLError)
    try:
        found: Mapping[str, Any] = manager.load([name])
    except errors as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        remedy = (
            "; its data come from the hub, and HF_HUB_OFFLINE is set: download them first on a machine that is online "
            "(HF_HOME names the cache), or use tasks with local data (evaluation.harness.include_path)"
        )
        message = f"{KEY}: {name} can't be loaded: {type(error).__name__}: {first_line(error)}"
        raise InputError(message + (remedy if offline and isinstance(error, OSError) else "")) from error
    return found


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"{KEY}: {name} runs code that a model wrote, which isn't done here")
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"{KEY}: {name} needs images or sound; only text is supported")
    options = task.config.dataset_kwargs or {}
    for location in (*_strings(options.get("data_files")), *_strings(options.get("data_dir"))):
        if "://" not in location and not os.path.isabs(location):
            raise InputError(
                f"{KEY}: {name} reads {location}, a relative path, which other processes don't find; make it absolute"
            )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for item in value.values() for one in _strings(item))
    elif isinstance(value, list | tuple):
        yield from (one for item in value for one in _strings(item))


def _set_fewshot(task: Any, count: int | None, seed: int) -> None:
    """As the harness's own command does it: a task fixed at 0 keeps that."""
    own = task.get_config("num_fewshot")
    if own != 0:
        task.set_config(key="num_fewshot", value=(own or 0) if count is None else count)
    task.set_fewshot_seed(seed=seed)


def _row(task: str, key: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> HarnessRow:
    metric, _, filter_name = key.partition(",")
    values = [float(found["results"][task][key]) for found in (base, tuned)]
    paired = [_values(found, task, metric, filter_name) for found in (base, tuned)]
    differences = np.array(paired[1]) - np.array(paired[0]) if len(paired[0]) == len(paired[1]) else np.array([])
    is_mean = len(differences) > 1 and math.isclose(differences.mean(), values[1] - values[0], abs_tol=1e-9)
    errors = [found["results"][task].get(f"{metric}_stderr,{filter_name}") for found in (base, tuned)]
    if is_mean:
        stderr = float(differences.std(ddof=1) / math.sqrt(len(differences)))
    else:
        stderr = math.hypot(*(error if isinstance(error, float) else math.nan for error in errors))
    return HarnessRow(
        task=task,
        metric=metric if filter_name == "none" else key,
        num_examples=len(differences) or None,
        base=values[0],
        tuned=values[1],
        difference=values[1] - values[0],
        stderr=stderr,
        higher_is_better=(base.get("higher_is_better") or {}).get(task, {}).get(metric),
    )


def _values(found: Mapping[str, Any], task: str, metric: str, filter_name: str) -> list[float]:
    """A metric of each example of a task, where it is one number; [] of a group, or of another kind of metric."""
    samples = (found.get("samples") or {}).get(task, [])
    values = [sample.get(metric) for sample in samples if sample.get("filter") == filter_name]
    return [float(value) for value in values] if all(isinstance(value, int | float) for value in values) else []
