"""Arguments as people write them, made into overrides as Hydra's grammar wants them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from raytune_llm.errors import InputError
from raytune_llm.stores.quoting import quote
from raytune_llm.sweep.axes import flat

SPACE = "sweep.space."
FREE = (
    "scaling.trainer.",
    "service.overrides.",
    "model.from_pretrained.",
    "teacher.model.from_pretrained.",
    "data.columns.",
    "values.",
    "space.",
    "data.weights.",
)
"""Mappings whose keys no file of conf/ lists."""
MAPPINGS = {key.removesuffix("."): f"{key}KEY=VALUE" for key in FREE} | {
    "data.columns": "data.columns.prompt=question reads the file's key question as prompt"
}
"""The same, with how a value is given."""
VERSIONED_ROOTS = ("evaluate", "serve", "import_openai")
OFFERING_ROOT = "service"
"""Where model= names the bases that are offered."""
LISTS = ("data.train", "data.eval", "data.test", "data.guard")
"""Keys of which several values may be given with commas between them."""
VERSION = "version"
TEXTS = (VERSION, "model.chat_template")
"""Keys whose commas and braces belong to the value."""
KEYS = ("data.ignore",)
"""Keys of lists, of which one entry may be given without brackets."""
GRAMMAR = re.compile(r"""\s*(?:[\[{'"]|[a-z_]+\()""")
"""How a value begins that is a list, mapping, quoted text or function, in which a mistake isn't hidden by quotes."""
DOLLAR = "a file with ${ in its name is given by a pattern, with ? in place of the $"
PROMOTED = re.compile(r"\+{0,2}promote=(?!\s*\{)")
"""promote=never, short for promote.when=never; a mapping is the whole of it."""
MULTIRUN = ("--multirun", "-m")


def hydra_overrides(root: str, argument: str) -> list[str]:
    """An argument as Hydra's overrides. Any key may join the sweep's space without '+'
    (sweep.space.method.alpha=[0.1,0.5]) or a mapping of free keys (scaling.trainer.optim=…); where no adapter is
    trained, adapter=NAME names a version, though conf/adapter is a group, and several with commas or as a list; and
    values that Hydra would read as its own grammar are quoted (data.train=hf:org/name:train[:20],
    data.train=a.jsonl,b.jsonl).

    Raises:
        InputError: several values for a key of one value, or an option of Hydra's that has no meaning here.
    """
    if argument in MULTIRUN:
        raise InputError(f"{argument} has no meaning here: a sweep is jobs/sweep.py with {SPACE}KEY=[VALUE,VALUE]")
    if root in VERSIONED_ROOTS and argument.startswith("adapter="):
        argument = argument.replace("adapter=", "version=", 1)
    if root == OFFERING_ROOT:
        argument = _offering(argument)
    if PROMOTED.match(argument):
        argument = argument.replace("promote=", "promote.when=", 1)
    argument = quoted(argument)
    if argument.startswith(SPACE) and "=" in argument:
        key = argument.partition("=")[0]
        return [f"++{key}=null", f"++{argument}"]  # a range can't be merged into a list
    return [f"++{argument}"] if argument.startswith((*FREE, *(f"{key}=" for key in MAPPINGS))) else [argument]


def taken_out(overrides: Sequence[str], default: Sequence[str]) -> dict[str, str]:
    """Keys of a sweep's default space for which Hydra's overrides have a value and no axis, with that value: who asks
    for tuning.steps=10 gets 10 steps."""
    values = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    axes = [key for key in values if key.startswith(SPACE)]
    if whole := values.get(SPACE.removesuffix(".")):
        axes += [f"{SPACE}{key}" for key, _ in flat(parsed(f"space={whole}") or {})]

    def has_axis(key: str) -> bool:
        return any(f"{axis}.".startswith(f"{key}.") or f"{key}.".startswith(f"{axis}.") for axis in axes)

    return {key: values[key] for key in default if key in values and not has_axis(f"{SPACE}{key}")}


def parsed(override: str) -> Any:
    """The value of one of Hydra's overrides."""
    return OverridesParser.create().parse_override(override).value()


def _offering(argument: str) -> str:
    """model=a,b as service.models=[a,b], and model.KEY=… as an override of every job."""
    key, _, value = argument.partition("=")
    if key == "model":
        return f"service.models=[{value.strip('[]')}]"
    return f"service.overrides.{argument}" if key.startswith("model.") else argument


def quoted(argument: str) -> str:
    """An override with its value in quotes where Hydra would take it for something else. Raises InputError."""
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    if "${" in value and value.count("{") != value.count("}") and key not in TEXTS:
        raise InputError(
            f"{argument}: ${{ without }}: it begins a reference to another key, such as ${{home}}; {DOLLAR}"
        )
    if key in KEYS and not GRAMMAR.match(value) and value != "null":
        return f"{key}=[{','.join(quote(name.strip()) for name in value.split(',') if name.strip())}]"
    try:
        override: Any = OverridesParser.create().parse_override(argument)
    except HydraException:
        is_file = key in LISTS and os.path.exists(os.path.expanduser(value))
        if GRAMMAR.match(value) and key not in TEXTS and not is_file:
            raise InputError(
                f"{argument}: no list or mapping as Hydra reads it: texts with accents, spaces or brackets go in "
                "quotes within it, keys don't: [{path: 'été.jsonl', weight: 2}]"
            ) from None
        return f"{key}={as_list(value) if key in LISTS else quote(value)}"
    if key == VERSION and isinstance(override.value(), list):
        return f"{key}={quote(','.join(reference_names(argument, override.value())))}"
    if key in MAPPINGS and not isinstance(override.value(), dict):
        raise InputError(f"{argument}: expected a value for each key below it: {MAPPINGS[key]}")
    if key in KEYS and not override.is_sweep_override():
        if override.value() is None or isinstance(override.value(), dict):
            raise InputError(f"{argument}: expected names: {key}=[weight,tools], or {key}=[] for none")
        return argument if isinstance(override.value(), list) else f"{key}=[{value}]"
    if not override.is_sweep_override():
        return argument
    is_list = getattr(override.value(), "simple_form", False)
    if is_list and key in (*LISTS, *TEXTS):
        return f"{key}={as_list(value) if key in LISTS else quote(value)}"
    several = value if is_list else "VALUE,VALUE"
    raise InputError(
        f"{argument}: one run takes one value; to try several: jobs/sweep.py {SPACE}{key}=[{several}]; "
        f"a text with commas goes in quotes: \"{key}='{value}'\""
    )


def reference_names(argument: str, values: list[Any]) -> list[str]:
    """The entries of a list of registry references. Raises InputError when it holds anything else."""
    names = [value.text if isinstance(value, QuotedString) else value for value in values]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{argument}: expected registry references, such as adapter=[NAME,OTHER@3] or adapter=NAME,OTHER@3"
        )
    return names


def as_list(value: str) -> str:
    """Locations with commas between them as a list; one location, perhaps with a comma in its name, as it is."""
    if "," not in value or os.path.exists(os.path.expanduser(value)):
        return quote(value)
    return f"[{','.join(quote(part.strip()) for part in value.split(','))}]"
