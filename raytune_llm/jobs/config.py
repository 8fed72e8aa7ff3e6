"""A composed Hydra config becomes a typed, frozen job; the only importer of hydra and omegaconf.

Each mapping in conf/ names its class with `_target_`, and that dataclass is its schema: types and meaning stand in
Python, values in YAML, each once. Wrong types, unknown keys (`+typo=1` too), missing values and values out of range
are refused with the full key, before anything is started.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raytune_llm.data.demo import path as demo_path
from raytune_llm.errors import InputError
from raytune_llm.jobs.help import help_text
from raytune_llm.jobs.schema import Job

CONF = Path(__file__).resolve().parents[2] / "conf"
SPACE = "sweep.space."
VERSIONED_ROOTS = ("evaluate", "serve")
PATHS = (
    "home",
    "data.train",
    "data.eval",
    "data.test",
    "model.name_or_path",
    "model.chat_template",
    "teacher.model.name_or_path",
    "teacher.model.chat_template",
    "prompt.examples",
    "method.teacher",
    "method.sft_data",
    "output",
)
"""Keys whose relative local paths are made absolute on the driver, before they cross to workers with another folder."""
FOLDERS = ("home", "output")
"""Those of them that are always paths, whether they exist or not."""

OmegaConf.register_new_resolver("demo", lambda name: str(demo_path(name)), replace=True)


def run(root: str, main: Callable[[Any], int | None]) -> None:
    """Compose conf/<root>.yaml with the command line, build its job and call main with it; exits the process.

    Exit status: 2 when what the user gave can't be used (one message, no traceback), main's own status otherwise.
    """
    argv = [spelled for argument in sys.argv[1:] for spelled in spelled_out(root, argument)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [argument for argument in argv if argument not in ("--help", "-h")]
    wants_help = len(sys.argv) - 1 < len(argv)

    def composed(cfg: DictConfig) -> None:
        if wants_help:
            print(help_text(root, cfg, CONF, resolve_target))
            sys.exit(0)
        try:
            status = main(build(cfg))
        except InputError as error:
            fail(str(error))
        sys.exit(status or 0)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=root)(composed)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error))


def fail(message: str) -> NoReturn:
    """Print the message and exit with status 2; RAYTUNE_LLM_TRACEBACK=1 shows where it came from."""
    if os.environ.get("RAYTUNE_LLM_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def compose(root: str, overrides: list[str]) -> DictConfig:
    """The composed config of a root, as the command line would give it. Raises InputError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra_compose(root, [spelled for override in overrides for spelled in spelled_out(root, override)])
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error)) from error


def load(root: str, overrides: list[str]) -> Any:
    """The job of a root with overrides; for tests, notebooks and other programs. Raises InputError."""
    return build(compose(root, overrides))


def spelled_out(root: str, argument: str) -> list[str]:
    """What an argument means to Hydra: any key may join the sweep's space without '+'
    (sweep.space.method.alpha=[0.1,0.5]), and where no adapter is trained, adapter=NAME names a version, though
    conf/adapter is a group."""
    if argument.startswith(SPACE) and "=" in argument:
        key = argument.partition("=")[0]
        return [f"++{key}=null", f"++{argument}"]  # a range can't be merged into the list that stood there
    if root in VERSIONED_ROOTS and argument.startswith("adapter="):
        return [argument.replace("adapter=", "version=", 1)]
    return [argument]


def build(cfg: DictConfig) -> Any:
    """The job a composed config describes. Raises InputError with the full key of what is wrong."""
    root = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(root, DictConfig)
    missing = sorted(OmegaConf.missing_keys(root))
    if missing:
        raise InputError(
            "missing: "
            + ", ".join(missing)
            + "; give each on the command line, e.g. "
            + " ".join(f"{key}=…" for key in missing)
        )
    for key in PATHS:
        if isinstance(value := OmegaConf.select(root, key), str):
            OmegaConf.update(root, key, absolute(value) if key in FOLDERS else absolute_if_local(value))
    job = build_node(root, "", all_keys(root))
    assert isinstance(job, Job)
    check_space(root, job)
    return job


def build_node(node: DictConfig, key: str, known: list[str], cls: type | None = None) -> Any:
    """The dataclass instance that a mapping describes; the class is given, or named by its `_target_`."""
    content: dict[str, Any] = {str(name): node._get_node(name) for name in node}
    if "_target_" in content:
        cls = resolve_target(str(node["_target_"]), f"{key}_target_")
        content.pop("_target_")
    assert cls is not None
    fields = [f.name for f in dataclasses.fields(cls)]
    for name in content:
        if name not in fields:
            raise InputError(unknown_key(f"{key}{name}", known))
    for name in fields:
        if name not in content:
            raise InputError(
                f"missing: {key}{name}; {cls.__module__}.{cls.__qualname__} has this field, its YAML doesn't"
            )
    nested = {name: nested_class(cls, name, child) for name, child in content.items()}
    children = {
        name: build_child(content[name], f"{key}{name}.", known, inner)
        for name, inner in nested.items()
        if inner is not None
    }
    plain = {name: child for name, child in content.items() if name not in children}
    schema = dataclasses.make_dataclass(
        cls.__name__, [(name, leaf_type(cls, name)) for name in fields if name in plain]
    )
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(plain))
        return cls(**{name: to_python(merged._get_node(name)) for name in plain}, **children)
    except OmegaConfBaseException as error:
        raise InputError(f"{key}{error.full_key}: {first_line(error)}") from error
    except ValueError as error:
        raise InputError(str(error)) from error


def describe(value: Any) -> Any:
    """A job or component as plain values, each dataclass with its `_target_`: what a card keeps."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        target = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"_target_": target, **{f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def restore(described: dict[str, Any]) -> Any:
    """The component that `describe` wrote down. Raises InputError."""
    node = OmegaConf.create(described)
    assert isinstance(node, DictConfig)
    return build_node(node, "", all_keys(node))


def build_child(child: DictConfig, key: str, known: list[str], cls: type) -> Any:
    """A component, a dataclass that has no choices, or a dict of components (like trackers) by their names."""
    if cls is dict:
        entries: dict[str, Any] = {str(name): child._get_node(name) for name in child}
        return {name: build_node(entry, f"{key}{name}.", known) for name, entry in entries.items()}
    return build_node(child, key, known, cls)


def nested_class(cls: type, name: str, child: Any) -> type | None:
    """What a field's mapping is built as: a dataclass, a dict of components, or None for a plain value."""
    if not isinstance(child, DictConfig) or child._is_none():
        return None
    if "_target_" in child:
        return resolve_target(str(child["_target_"]), f"{name}._target_")
    entries = [child._get_node(entry) for entry in child]
    if entries and all(isinstance(entry, DictConfig) and "_target_" in entry for entry in entries):
        return dict
    declared = leaf_type(cls, name)
    return declared if isinstance(declared, type) and dataclasses.is_dataclass(declared) else None


def resolve_target(target: str, key: str) -> type:
    """The dataclass named by a `_target_`; only this project's own are allowed."""
    if not target.startswith("raytune_llm."):
        raise InputError(f"{key}={target} is refused: targets must be in raytune_llm")
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise InputError(f"{key}={target} is not a dataclass of {module}")
    return cls


def check_space(root: DictConfig, job: Job) -> None:
    """Refuse a sweep whose space names a key that isn't there, or holds a value its key doesn't take."""
    sweep = getattr(job, "sweep", None)
    if sweep is None:
        return
    for key, values in sweep.candidates():
        if OmegaConf.select(root, key) is None and key not in all_keys(root):
            raise InputError(unknown_key(f"{SPACE}{key}", [f"{SPACE}{name}" for name in all_keys(root)]))
        for value in values:
            tried = OmegaConf.create(OmegaConf.to_container(root))
            assert isinstance(tried, DictConfig)
            OmegaConf.update(tried, key, value)
            try:
                build_node(tried, "", all_keys(root))
            except InputError as error:
                raise InputError(f"{SPACE}{key}: {error}") from error


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors in one plain message, with the nearest valid key."""
    cause: BaseException | None = error
    while cause is not None:
        full_key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
        if full_key and isinstance(parent, DictConfig) and "not in struct" in str(cause):
            known = all_keys(parent._get_root())
            return unknown_key(str(full_key), known)
        cause = cause.__cause__
    messages = [str(link).strip() for link in (error, error.__cause__) if link is not None and str(link).strip()]
    lines = messages[0].splitlines() if messages else [type(error).__name__]
    return "\n".join(
        line
        for line in lines
        if line.strip() and not line.startswith(("Config search path", "\tprovider", "    full_key", "    object_type"))
    )


def unknown_key(key: str, known: list[str]) -> str:
    known = [name for name in known if name != key]
    nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    nearest += [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1] and name not in nearest]
    return f"unknown key: {key}; nearest valid: {', '.join(nearest[:3]) or 'none'} (--cfg job shows all keys)"


def all_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all values below a mapping."""
    return list(_walk(node, prefix))


def _walk(node: Any, prefix: str) -> Iterator[str]:
    for name in node:
        if name in ("_target_", "hydra"):
            continue
        child = node._get_node(name)
        yield f"{prefix}{name}"
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _walk(child, f"{prefix}{name}.")


def leaf_type(cls: type, name: str) -> Any:
    """The type of a field as OmegaConf checks it; Any where it names what is known to type checkers alone."""
    for owner in cls.__mro__:
        if name in (annotations := inspect.get_annotations(owner)):
            try:
                return eval(annotations[name], vars(sys.modules[owner.__module__]))
            except NameError:
                return Any
    raise AssertionError(f"{cls} has no field {name}")


def to_python(node: Any) -> Any:
    """A merged OmegaConf node as plain Python: dataclasses, enums, lists, dicts."""
    return OmegaConf.to_object(node) if OmegaConf.is_config(node) and not node._is_none() else node._value()


def absolute(path: str) -> str:
    """A local path made absolute here, on the driver; URIs as they are."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def absolute_if_local(value: str) -> str:
    """An existing local file or folder made absolute, or what looks like a relative path; ids and templates as they
    are."""
    path = Path(value).expanduser()
    looks_local = value.startswith((".", "~")) or (path.suffix in {".jsonl", ".json", ".gz"} and ":" not in value)
    return str(path.resolve()) if looks_local or (len(value) < 1024 and path.exists()) else value


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
