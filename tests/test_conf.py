"""Every option in conf/ composes, loads, and is read by somebody."""

import dataclasses
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from raytune_llm.annotation.teachers.base import Teacher
from raytune_llm.evaluation.judges.base import Judge
from raytune_llm.jobs.config import CONF, compose, load
from raytune_llm.jobs.schema import JOBS
from raytune_llm.methods.algorithms.base import Algorithm
from raytune_llm.methods.base import Method
from raytune_llm.methods.rewards.base import Reward
from raytune_llm.methods.samplers.base import Sampler
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.service.answers.base import Answers
from raytune_llm.serving.engine.base import EngineConfig
from raytune_llm.stores import choices
from raytune_llm.stores.choices import is_protocol, names, package_of
from raytune_llm.stores.components import build, describe, field_types, item_type, unwrapped
from raytune_llm.sweep.backends.base import Backend
from raytune_llm.sweep.schedulers.base import Scheduler
from raytune_llm.sweep.search.base import Search
from raytune_llm.training.tracking.base import Tracker

ROOT = Path(__file__).parents[1]
PROTOCOLS = [
    Method,
    Reward,
    Algorithm,
    Sampler,
    Adapter,
    Teacher,
    Judge,
    Tracker,
    Search,
    Backend,
    Scheduler,
    EngineConfig,
    Answers,
]
"""What can be chosen by short names."""
PACKAGE = ROOT / "raytune_llm"
ROOTS = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem not in ("job", "demo"))


GIVEN = {"model": "model=demo", "data": "data=demo_sarcasm"}


def given(root, *overrides):
    """The overrides that a root needs to be complete."""
    groups = [key for entry in chain(root) for key in (entry if isinstance(entry, dict) else {})]
    needed = [GIVEN[group] for group in groups if group in GIVEN]
    missing_adapter = root in ("evaluate", "serve")
    teacher = ["teacher=openai", *EXTRA["teacher", "openai"]] if root == "annotate" else []
    offered = ["model=demo"] if root == "service" else []
    return [*needed, *(["adapter=tuned"] if missing_adapter else []), *teacher, *offered, *overrides]


def chain(root):
    """The defaults list of a root, those of the roots it inherits from included."""
    for entry in OmegaConf.load(CONF / f"{root}.yaml").defaults:
        yield OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
        if entry in ("train", "sweep"):
            yield from chain(entry)


EXTRA = {
    ("data", "jsonl"): ["data.train=x.jsonl"],
    ("model", "hub"): ["model.name_or_path=org/name"],
    ("tracking", "wandb"): ["tracking.wandb.mode=offline"],
    ("teacher", "openai"): ["teacher.model=m", "teacher.api_key_env=null"],
    ("evaluation/judge", "openai"): ["evaluation.judge.model=m", "evaluation.judge.api_key_env=null"],
    ("teacher", "local"): ["teacher.model.name_or_path=org/name"],
    ("teacher", "version"): ["teacher.version=tuned"],
    ("method/sampler", "transformers"): ["method=rlhf"],
    ("method/sampler", "vllm"): ["method=rlhf"],
    ("method/algorithm", "rloo"): ["method=rlhf"],
    ("method/algorithm", "grpo"): ["method=rlhf"],
    ("method/rewards", "model"): ["method=rlhf"],
    ("method/rewards", "exact"): ["method=rlhf"],
    ("method/rewards", "pattern"): ["method=rlhf", "method.rewards.pattern.regex=x"],
    ("method/rewards", "function"): ["method=rlhf", "method.rewards.function.name=m:f"],
}
"""What an option needs besides being chosen."""
OPTIONS = [
    (file.parent.relative_to(CONF).as_posix(), file.stem)
    for file in sorted(CONF.rglob("*.yaml"))
    if file.parent not in (CONF, CONF / "wandb")  # the latter's is a file for W&B's command line
]


@cache
def job_with(group, option):
    """A sweep with an option, or a service with one of its own."""
    root = root_of(group)
    return load(root, given(root, f"{group}={option}", *EXTRA.get((group, option), [])))


def root_of(group):
    return "service" if group.split("/")[0] == "service" else "sweep"


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_has_a_job_and_loads(root):
    job = load(root, given(root))
    assert (ROOT / "jobs" / f"{root}.py").is_file()
    assert type(job).__name__.lower() == f"{root.replace('_', '')}job"
    assert type(job) is JOBS[root]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_loads(group, option):
    job = job_with(group, option)
    assert build(JOBS[root_of(group)], describe(job)) == job


PRESETS = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if file.stem not in ("hub", "demo"))
"""Bases of the hub."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_base_of_the_hub_says_what_it_is(name):
    """Parameters, hidden size, context, licence, and the rate that its hidden size gives."""
    text = (CONF / "model" / f"{name}.yaml").read_text()
    stated = re.match(
        r"# [\d.]+ [MB] parameters, (?:encoder-decoder, )?hidden size (\d+), context [\d,]+ tokens; "
        r".+, (?:open to all|gated on the hub)\.\n",
        text,
    )
    rate = re.search(r"^# Recommended rate by hidden size: (\S+)\.$", text, re.MULTILINE)
    assert stated and rate, text
    base = load("train", [f"model={name}", "data=demo_sarcasm"]).model
    base.__dict__["facts"] = SimpleNamespace(hidden_size=int(stated[1]))
    assert float(rate[1]) == float(f"{base.recommended_rate():.1e}")


def reachable(declared, seen):
    """All protocols that the fields of a job's class, and of the choices below it, are annotated with."""
    declared = item_type(unwrapped(declared)) or unwrapped(declared)
    if declared in seen or not isinstance(declared, type):
        return seen
    seen.add(declared)
    if is_protocol(declared):
        for name in names(declared):
            reachable(choices.component(declared, name, "type"), seen)
    elif dataclasses.is_dataclass(declared):
        for hint in field_types(declared).values():
            reachable(hint, seen)
    return seen


def test_every_choice_is_annotated_by_its_protocol_and_has_a_config_file():
    """Each module that could be named is in conf/ under its name, and the other way round."""
    seen = {declared for cls in set(JOBS.values()) for declared in reachable(cls, set())}
    assert {declared for declared in seen if is_protocol(declared)} == set(PROTOCOLS)
    text = "\n".join(file.read_text() for file in CONF.rglob("*.yaml"))
    found = set(re.findall(r"^ *type: (\S+)", text, re.MULTILINE))
    assert found == {name for protocol in PROTOCOLS for name in names(protocol)}


def test_whatever_is_chosen_composing_waits_for_no_large_package():
    every = [
        module for protocol in PROTOCOLS for module in (f"{package_of(protocol)}.{name}" for name in names(protocol))
    ]
    imports = "\n".join(f"import {module}" for module in ["sys", "raytune_llm.jobs.config", *every])
    code = f"{imports}\nprint({{'torch', 'transformers', 'ray', 'pandas', 'fastapi'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_jobs_are_short():
    for file in (ROOT / "jobs").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 30, file


def components(value):
    """The job and every dataclass inside it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from components(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from components(item)


def test_no_option_is_dead():
    """Each field of each component is read somewhere outside its own declaration."""
    code = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    jobs = [load(root, given(root)) for root in ROOTS]
    jobs += [job_with(group, option) for group, option in OPTIONS if option not in ("jsonl", "hub")]
    fields = {(type(c), f.name) for job in jobs for c in components(job) for f in dataclasses.fields(c)}
    read = set(re.findall(r"(?<=[\w\])])\.(\w+)", code))
    dead = [f"{cls.__name__}.{name}" for cls, name in sorted(fields, key=str) if name not in read]
    assert not dead


def test_defaults_are_in_yaml_alone():
    for job in [load(root, given(root)) for root in ROOTS]:
        for component in components(job):
            for field in dataclasses.fields(component):
                assert field.default is dataclasses.MISSING, (
                    f"{type(component).__name__}.{field.name} has a default in Python"
                )


def test_the_composed_config_shows_every_key():
    assert compose("sweep", given("sweep")).tuning.early_stopping.patience == 3
