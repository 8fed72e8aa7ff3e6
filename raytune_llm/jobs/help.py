"""What `--help` prints: the config groups, and each key with its value and the meaning that stands below its field in
Python."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def help_text(root: str, cfg: DictConfig, conf: Path, resolve: Callable[[str, str], type]) -> str:
    """The help of a job, for its config as composed with the overrides given so far."""
    width = min(shutil.get_terminal_size((110, 40)).columns, 120)
    cls = resolve(str(cfg["_target_"]), "_target_")
    lines = [
        (inspect.getdoc(cls) or "").strip(),
        "",
        f"usage: python jobs/{root}.py [group=choice ...] [key=value ...] [--help] [--cfg job]",
        "",
        "Groups (group=choice takes a file of conf/):",
    ]
    for group, options in groups(cfg, conf):
        lines += textwrap.wrap(f"{group}: {' '.join(options)}", width, initial_indent="  ", subsequent_indent="      ")
    lines += ["", "Keys (key=value):"]
    for key, value, meaning in described(cfg, "", resolve):
        lines.append(f"  {key} = {value}")
        lines += textwrap.wrap(meaning, width, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "--cfg job prints the config as YAML. Hydra's own options: --hydra-help."]
    return "\n".join(lines)


def groups(cfg: DictConfig, conf: Path) -> Iterator[tuple[str, list[str]]]:
    """Config groups whose package is in this job, with their choices."""
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir()):
        group = folder.relative_to(conf).as_posix()
        options = sorted(file.stem for file in folder.glob("*.yaml"))
        if options and OmegaConf.select(cfg, group.split("@")[0].replace("/", "."), default=None) is not None:
            yield group, options


def described(node: DictConfig, prefix: str, resolve: Callable[[str, str], type]) -> Iterator[tuple[str, str, str]]:
    """(full key, value as YAML would show it, meaning) of every value below a mapping."""
    cls = resolve(str(node["_target_"]), prefix) if "_target_" in node else None
    for name in node:
        child = node._get_node(name)
        if name in ("_target_", "hydra") or child is None:
            continue
        key = prefix + str(name)
        meaning = meanings(cls).get(str(name), "") if cls else ""
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing() and len(child):
            inner = child if "_target_" in child or cls is None else typed(child, cls, str(name))
            yield from described(inner, f"{key}.", resolve)
            continue
        yield key, "???" if child._is_missing() else one_line(child), meaning


def one_line(value: Any) -> str:
    """A value as YAML has it, which folds long ones."""
    return " ".join(OmegaConf.to_yaml(OmegaConf.create([value]))[2:].split())


def typed(child: DictConfig, cls: type, name: str) -> DictConfig:
    """A plain nested mapping with the class of its field written in, when that is a dataclass."""
    import dataclasses
    import sys

    annotation = {f.name: f.type for f in dataclasses.fields(cls)}[name]
    nested = vars(sys.modules[cls.__module__]).get(str(annotation))
    if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
        return child
    target = {"_target_": f"{nested.__module__}.{nested.__qualname__}"}
    merged = OmegaConf.merge(OmegaConf.create(target), OmegaConf.create(OmegaConf.to_container(child)))
    assert isinstance(merged, DictConfig)
    return merged


@cache
def meanings(cls: type) -> dict[str, str]:
    """Field name → the string that stands below it, over the class and its bases."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not hasattr(owner, "__dataclass_fields__"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, doc in itertools.pairwise(body):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
