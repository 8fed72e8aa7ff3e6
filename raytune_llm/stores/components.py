"""Components as plain values and back: what YAML, cards and serve files hold.

The type of a field decides what its values become. A Protocol is a choice: a mapping whose `type` is the short name of
a module (stores/choices.py). A dataclass is a mapping of its fields. dict[str, X] is a mapping of X. Anything else is a
plain value, converted and checked by OmegaConf. Wrong types, unknown keys, missing keys and values out of range raise
InputError with the full key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raytune_llm.compat import config_node, is_null, node_value
from raytune_llm.errors import InputError, first_line
from raytune_llm.stores.choices import component, is_protocol, name_of, names

TYPE = "type"
"""The key that names a choice."""


def build(
    declared: Any,
    values: Mapping[str, Any],
    *,
    key: str = "",
    known: list[str] | None = None,
    former: tuple[Mapping[str, Any], Any] = ({}, None),
) -> Any:
    """The dataclass instance that a mapping describes.

    declared: a dataclass, or a Protocol whose choice `type` names. key: where the mapping is, ending in a dot, for
    messages. known: all keys of the job, of which messages name the nearest; by default those of the mapping. former:
    another mapping and its instance of this dataclass, from which fields with the same components are taken.
    """
    known = all_keys(values, key) if known is None else known
    content = {str(name): value for name, value in values.items()}
    cls = declared
    if is_protocol(declared):
        if TYPE not in content:
            raise InputError(f"missing: {key}{TYPE}; allowed: {', '.join(names(declared))}")
        cls = component(declared, content.pop(TYPE), f"{key}{TYPE}")
    hints = field_types(cls)
    _check_keys(cls, hints, content, key, known)
    nested = {name: hint for name, hint in hints.items() if is_nested(hint) and not _is_null(hint, content[name])}
    same = {name for name in nested if name in former[0] and content[name] == former[0][name]}
    children = {
        name: getattr(former[1], name) if name in same else _build_child(hint, content[name], f"{key}{name}", known)
        for name, hint in nested.items()
    }
    plain = {name: value for name, value in content.items() if name not in nested}
    return _instance(cls, [name for name in hints if name in plain], plain, children, key)


def describe(value: Any, declared: Any = None) -> Any:
    """A job or component as plain values, the inverse of `build`. With a Protocol as declared type, the result names
    its choice by `type`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = field_types(type(value))
        fields = {name: describe(getattr(value, name), unwrapped(hint)) for name, hint in hints.items()}
        return {TYPE: name_of(value, declared), **fields} if is_protocol(declared) else fields
    if isinstance(value, Mapping):
        item = item_type(declared)
        return {key: describe(entry, item) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, which must be importable at runtime."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def unwrapped(declared: Any) -> Any:
    """X of X | None, any other type as it is."""
    if typing.get_origin(declared) in (types.UnionType, typing.Union):
        others = [option for option in typing.get_args(declared) if option is not type(None)]
        return others[0] if len(others) == 1 else declared
    return declared


def item_type(declared: Any) -> Any:
    """X of dict[str, X] where X is a choice or a dataclass, else None."""
    item = typing.get_args(declared)[1] if typing.get_origin(declared) is dict else None
    return item if _is_component_type(item) else None


def is_nested(declared: Any) -> bool:
    """Whether a field of this type holds components: a choice, a dataclass, or a dict of them."""
    return _is_component_type(unwrapped(declared)) or item_type(unwrapped(declared)) is not None


def all_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all values below a mapping of plain values, without those of choices."""
    return list(_walk(values, prefix))


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that isn't there, with the nearest ones."""
    known = [name for name in known if name != key]
    nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    nearest += [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1] and name not in nearest]
    return f"unknown key: {key}; nearest valid: {', '.join(nearest[:3]) or 'none'} (--cfg job shows all keys)"


def _check_keys(cls: type, hints: Mapping[str, Any], content: Mapping[str, Any], key: str, known: list[str]) -> None:
    for name in content:
        if name not in hints:
            raise InputError(unknown_key(f"{key}{name}", known))
    for name in hints:
        if name not in content:
            raise InputError(
                f"missing: {key}{name}, a key of {cls.__name__}; a component is best chosen by its config group, like "
                "method=dss, whose file gives all its keys"
            )


def _build_child(declared: Any, values: Any, key: str, known: list[str]) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{key}={'null' if values is None else values} is not allowed; allowed: a mapping of keys")
    declared = unwrapped(declared)
    if (item := item_type(declared)) is not None:
        return {str(name): _build_child(item, entry, f"{key}.{name}", known) for name, entry in values.items()}
    return build(declared, values, key=f"{key}.", known=known)


def _instance(cls: type, fields: list[str], plain: Mapping[str, Any], children: Mapping[str, Any], key: str) -> Any:
    """The dataclass, its plain values converted to their types."""
    try:
        merged: Any = OmegaConf.merge(_schema(cls, tuple(fields)), OmegaConf.create(dict(plain)))
        return cls(**{name: _to_python(config_node(merged, name)) for name in plain}, **children)
    except OmegaConfBaseException as error:
        raise InputError(f"{key}{error.full_key}: {first_line(error)}") from error


@cache
def _schema(cls: type, fields: tuple[str, ...]) -> Any:
    """Some fields of a dataclass as OmegaConf checks them; not to be changed."""
    types_ = field_types(cls)
    return OmegaConf.structured(
        dataclasses.make_dataclass(cls.__name__, [(name, _plain_type(types_[name])) for name in fields])
    )


def _is_component_type(declared: Any) -> bool:
    return is_protocol(declared) or (isinstance(declared, type) and dataclasses.is_dataclass(declared))


def _is_null(declared: Any, value: Any) -> bool:
    """Whether a field that may be null is null."""
    return value is None and unwrapped(declared) is not declared


def _plain_type(declared: Any) -> Any:
    """A type as OmegaConf checks it; a null where a component may be is checked by nobody else."""
    return Any if is_nested(declared) else declared


def _to_python(node: Any) -> Any:
    """A merged OmegaConf node as plain Python: enums, lists, dicts."""
    return OmegaConf.to_object(node) if OmegaConf.is_config(node) and not is_null(node) else node_value(node)


def _walk(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        if name in (TYPE, "hydra"):
            continue
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
