"""What `--help` prints: the config groups, and each key with its value and its meaning, the string below its field in
Python."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from raytune_llm.stores.choices import component, is_protocol
from raytune_llm.stores.components import TYPE, field_types, item_type, unwrapped


def called(command: str) -> str:
    """Another command, called as this one was: as a script of jobs/ or by the console script."""
    return f"python jobs/{command}.py" if Path(sys.argv[0]).parent.name == "jobs" else f"raytune-llm {command}"


def help_text(job: type, values: Mapping[str, Any], conf: Path, program: str) -> str:
    """The help of a job, for its config as composed with the overrides given so far."""
    width = min(shutil.get_terminal_size((110, 40)).columns, 120)
    lines = [
        (inspect.getdoc(job) or "").strip(),
        "",
        f"usage: {program} [group=choice ...] [key=value ...] [--help] [--cfg job]",
        "",
        "Groups (group=choice takes a file of conf/):",
    ]
    for group, options in groups(values, conf):
        lines += textwrap.wrap(f"{group}: {' '.join(options)}", width, initial_indent="  ", subsequent_indent="      ")
    lines += ["", "Keys (key=value):"]
    for key, value, meaning in described(job, values, ""):
        lines.append(f"  {key} = {value}")
        lines += textwrap.wrap(meaning, width, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "--cfg job prints the config as YAML. Hydra's own options: --hydra-help."]
    return "\n".join(lines)


def groups(values: Mapping[str, Any], conf: Path) -> Iterator[tuple[str, list[str]]]:
    """Config groups whose package is in this job, with their choices."""
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir()):
        group = folder.relative_to(conf).as_posix()
        options = sorted(file.stem for file in folder.glob("*.yaml"))
        if options and _select(values, group.split("/")) is not None:
            yield group, options


def described(declared: Any, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(full key, value as YAML would show it, meaning) of every value below a mapping. declared: the type of the field
    that holds it; None for plain values."""
    cls = component(declared, values.get(TYPE), f"{prefix}{TYPE}") if is_protocol(declared) else declared
    hints = field_types(cls) if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__") else {}
    for name, value in values.items():
        if name == TYPE and is_protocol(declared):
            continue
        key, hint = f"{prefix}{name}", unwrapped(hints.get(name, item_type(declared)))
        if isinstance(value, Mapping) and value:
            yield from described(hint, value, f"{key}.")
            continue
        yield key, one_line(value), meanings(cls).get(name, "") if hints else ""


def one_line(value: Any) -> str:
    """A value as YAML has it, which folds long ones."""
    return "???" if value == "???" else " ".join(OmegaConf.to_yaml(OmegaConf.create([value]))[2:].split())


@cache
def meanings(cls: type) -> dict[str, str]:
    """Field name → the string below it, over the class and its bases."""
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


def _select(values: Mapping[str, Any], path: list[str]) -> Any:
    """The value at a path of nested keys, None where there is none."""
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
