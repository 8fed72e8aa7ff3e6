"""A composed Hydra config becomes a typed, frozen job. Of the command line overrides.py makes what Hydra takes.

The dataclass of a command (schema.JOBS) and the types of its fields are the schema: types and meaning are written in
Python, values in YAML, each once. A choice among components is named in YAML by `type` (stores/choices.py). Wrong
types, unknown keys (`+typo=1` too), missing values and values out of range are refused with the full key, before
anything is started.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from raytune_llm.compat import config_root
from raytune_llm.data.demo import path as demo_path
from raytune_llm.errors import InputError, first_line
from raytune_llm.jobs import invocation
from raytune_llm.jobs.help import called, help_text
from raytune_llm.jobs.overrides import DOLLAR, SPACE, hydra_overrides, parsed, taken_out
from raytune_llm.jobs.schema import JOBS, Job, SweepJob
from raytune_llm.stores import components
from raytune_llm.stores.choices import nearest_first
from raytune_llm.stores.components import all_keys, unknown_key
from raytune_llm.stores.locations import with_absolute_paths
from raytune_llm.sweep.axes import flat
from raytune_llm.sweep.plan import BASE

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next((folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir()), PACKAGE / "conf")
"""The config files: inside an installed package, at the top of a checkout."""
MERGING = "Error merging override "
NO_BASE = "hub"
"""The file of conf/model that names none."""
OmegaConf.register_new_resolver("demo", lambda name: str(demo_path(name)), replace=True)


def run(root: str, main: Callable[[Any], int | None]) -> None:
    """Compose conf/<root>.yaml with the command line, build its job and call main with it; exits the process.

    Exit status: 2 for an error caused by user input (one message, no traceback), 130 when it is interrupted, main's own
    status otherwise.
    """
    invocation.note(root, sys.argv[1:])
    try:
        argv, fixed = all_overrides(root, sys.argv[1:])
    except InputError as error:
        fail(str(error))
    for key, value in fixed.items():
        print(f"{key}={value} is given, so it isn't swept; {SPACE}{key}=[…] would sweep it", file=sys.stderr)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [argument for argument in argv if argument not in ("--help", "-h")]
    wants_help = len(sys.argv) - 1 < len(argv)

    def composed(cfg: DictConfig) -> None:
        if wants_help:
            print(help_text(JOBS[root], plain(cfg), CONF, called(root)))
            sys.exit(0)
        try:
            status = main(build(root, cfg))
        except InputError as error:
            fail(str(error))
        sys.exit(status or 0)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=root)(composed)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error))
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def fail(message: str) -> NoReturn:
    """Print the message and exit with status 2; RAYTUNE_LLM_TRACEBACK=1 shows where it came from."""
    if os.environ.get("RAYTUNE_LLM_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def all_overrides(root: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(arguments as Hydra's overrides; keys of the default space of sweeps that they take out of it, with their
    values). Raises InputError."""
    overrides = [override for argument in arguments for override in hydra_overrides(root, argument)]
    for override in overrides:
        check_group(override)
    if not issubclass(JOBS[root], SweepJob):
        return overrides, {}
    default: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / "default.yaml"))
    fixed = taken_out(overrides, [key for key, _ in flat(default["space"])])
    without = {f"{key}={value}": f"++{SPACE}{key}=null" for key, value in fixed.items()}
    together = ((override, without.get(override.lstrip("+"))) for override in overrides)  # argparse wants it so
    return [found for pair in together for found in pair if found is not None], fixed


def check_group(override: str) -> None:
    """Raise InputError where a group of conf/ is given what can't be the name of one of its files."""
    key, equals, _ = override.partition("=")
    files = sorted(file.stem for file in (CONF / key).glob("*.yaml")) if key and equals else []
    if files and not isinstance(parsed(override), str | list | dict):
        raise InputError(f"{override}: expected one of the files of conf/{key}: {', '.join(files)}")


def compose(root: str, overrides: Sequence[str]) -> DictConfig:
    """The composed config of a root, as the command line would give it; also while a command runs. Raises
    InputError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with own_hydra(), initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra_compose(root, all_overrides(root, overrides)[0])
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error)) from error


@contextmanager
def own_hydra() -> Iterator[None]:
    """Without the Hydra of the command that runs in this process, which allows no second one."""
    from hydra.core.global_hydra import GlobalHydra

    holder = GlobalHydra.instance()
    running, holder.hydra = holder.hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def load(root: str, overrides: Sequence[str]) -> Any:
    """The job of a root with overrides; for tests, notebooks and other programs. Raises InputError."""
    return build(root, compose(root, overrides))


def build(root_name: str, cfg: DictConfig) -> Any:
    """The job that a root's composed config describes. Raises InputError with the full key of what is wrong."""
    try:
        root = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        missing = sorted(OmegaConf.missing_keys(root))
    except OmegaConfBaseException as error:
        raise InputError(unresolved(error)) from error
    assert isinstance(root, DictConfig)
    if "model.name_or_path" in missing and (names := base_names(root)):
        choose_first_base(root, names[0])
        missing.remove("model.name_or_path")
    if missing:
        raise InputError(
            "missing: "
            + ", ".join(missing)
            + "; give each on the command line, e.g. "
            + " ".join(f"{key}=…" for key in missing)
        )
    job = components.build(JOBS[root_name], plain(root))
    assert isinstance(job, Job)
    check_space(root, job)
    return with_absolute_paths(job)


def base_names(root: DictConfig) -> list[str]:
    """The bases of a sweep's space; none where it has no axis of them."""
    names = OmegaConf.select(root, f"{SPACE}{BASE}")
    found = OmegaConf.to_container(names) if OmegaConf.is_list(names) else [names]
    assert isinstance(found, list)
    return [name for name in found if isinstance(name, str)]


def choose_first_base(root: DictConfig, name: str) -> None:
    """Make a base the job's own; what the command gave of other keys of it stays."""
    nothing = model_values(NO_BASE)
    given = {key: value for key, value in plain(root)[BASE].items() if value != nothing[key]}
    OmegaConf.update(root, BASE, model_values(name) | given, merge=False)


def model_values(name: str) -> dict[str, Any]:
    """The values of a base: those of conf/model/NAME.yaml, or of a folder or hub id that is `name`. Raises InputError
    where it is neither."""
    files = sorted(file.stem for file in (CONF / BASE).glob("*.yaml"))
    if name not in files and "/" not in name and not Path(name).is_dir():
        nearest = ", ".join(nearest_first(name, tuple(files)))
        raise InputError(f"{SPACE}{BASE}={name} is no folder, id on the hub or file of conf/{BASE}: {nearest}")
    chosen = compose("train", [f"{BASE}={name if name in files else NO_BASE}"])[BASE]
    values = OmegaConf.to_container(chosen, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()} | ({} if name in files else {"name_or_path": name})


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain values, without Hydra's own part; '???' where a value is missing."""
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items() if name != "hydra"}


def check_space(root: DictConfig, job: Job) -> None:
    """Refuse a sweep whose space, conditions or first points name a key that isn't there, or hold a value its key
    doesn't take."""
    if not isinstance(job, SweepJob):
        return
    OmegaConf.update(root, "data.weights", job.data.weights)  # of all locations, each of which may be swept
    content = plain(root)
    known = all_keys(content)

    def check(values: Mapping[str, Any], where: str) -> None:
        tried = OmegaConf.create(OmegaConf.to_container(root))
        assert isinstance(tried, DictConfig)
        for key, value in values.items():
            OmegaConf.update(tried, key, model_values(str(value)) if key == BASE else value)
        try:
            components.build(type(job), plain(tried), known=known, former=(content, job))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    of_trials = [name for name in known if not name.startswith("sweep.")]
    for key, axis in job.sweep.axes().items():
        swept, _, part = key.rpartition(".")
        if swept in known and not isinstance(OmegaConf.select(root, swept), DictConfig):
            raise InputError(
                f"{SPACE}{swept}: {part} is no part of a range: {{min: 0.1, max: 10, distribution: uniform}}"
            )
        check_known(key, root, [f"{SPACE}{name}" for name in of_trials], SPACE)
        for parent in axis.when:
            check_known(parent, root, [f"{SPACE}{key}.when.{name}" for name in of_trials], f"{SPACE}{key}.when.")
        for value in axis.candidates:
            check({key: value}, f"{SPACE}{key}")
    for place, point in enumerate(job.sweep.first):
        values = dict(flat(point))
        for key in values:
            check_known(key, root, of_trials, "", f"sweep.first[{place}]: ")
        check(values, f"sweep.first[{place}]")


def check_known(key: str, root: DictConfig, known: list[str], prefix: str, where: str = "") -> None:
    """Refuse a key that a config doesn't have, with the nearest of those that are known, all with this prefix."""
    if OmegaConf.select(root, key) is None and f"{prefix}{key}" not in known:
        raise InputError(where + unknown_key(f"{prefix}{key}", known))


def unresolved(error: OmegaConfBaseException) -> str:
    """Why ${…} in a value refers to nothing, with the key of that value."""
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(error)).strip('"')
    key = f"{error.full_key}: " if error.full_key else ""
    if not isinstance(error, InterpolationKeyError):
        return key + reason
    return (
        f"{key}{reason}: ${{…}} stands for the value of another key, or of the environment, ${{oc.env:NAME}}; {DOLLAR}"
    )


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors in one plain message, with the nearest valid key."""
    cause: BaseException | None = error
    while cause is not None:
        full_key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
        if full_key and isinstance(parent, DictConfig) and "not in struct" in str(cause):
            whole = config_root(parent)
            assert isinstance(whole, DictConfig)
            return unknown_key(str(full_key), all_keys(plain(whole)))
        cause = cause.__cause__
    messages = [str(link).strip() for link in (error, error.__cause__) if link is not None and str(link).strip()]
    lines = messages[0].splitlines() if messages else [type(error).__name__]
    if lines[0].startswith(MERGING) and len(messages) > 1:
        lines = [f"{lines[0].removeprefix(MERGING)}: {messages[1].splitlines()[0]}"]
    return "\n".join(
        line
        for line in lines
        if line.strip() and not line.startswith(("Config search path", "\tprovider", "    full_key", "    object_type"))
    )
