"""Short names of components: the one place where they are resolved.

A choice is a module of the package that holds its Protocol's own module, and its name is the module's: `sft` is
raytune_llm/methods/sft.py because raytune_llm/methods/base.py defines Method. A choice module has exactly one public
dataclass that is frozen and kw_only. No module outside that package can be named.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from functools import cache
from typing import Any

from raytune_llm.errors import InputError

DECORATOR = ("frozen", "kw_only")


def is_protocol(declared: Any) -> bool:
    """Whether a field of this type is a choice."""
    return isinstance(declared, type) and bool(getattr(declared, "_is_protocol", False))


def component(protocol: type, name: Any, key: str) -> type:
    """The dataclass of a choice. Raises InputError naming the key, the value and the names there are."""
    found = _class_name(protocol, name) if isinstance(name, str) and name.isidentifier() else None
    if found is None:
        raise InputError(
            f"{key}={name} is not allowed; allowed: {', '.join(nearest_first(str(name), names(protocol)))}"
        )
    cls = getattr(importlib.import_module(f"{package_of(protocol)}.{name}"), found)
    assert isinstance(cls, type)
    return cls


def name_of(component: Any, protocol: type) -> str:
    """The short name of a component. Raises TypeError for an object that no module of the package defines."""
    cls = type(component)
    package, _, name = cls.__module__.rpartition(".")
    if package != package_of(protocol) or _class_name(protocol, name) != cls.__name__:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not a component of {package_of(protocol)}")
    return name


@cache
def names(protocol: type) -> tuple[str, ...]:
    """All choices, sorted; their modules are read, not imported."""
    package = importlib.import_module(package_of(protocol))
    modules = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    return tuple(sorted(name for name in modules if _class_name(protocol, name) is not None))


def nearest_first(name: str, known: tuple[str, ...]) -> list[str]:
    near = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.4)
    return near + [other for other in known if other not in near]


def package_of(protocol: type) -> str:
    return protocol.__module__.rpartition(".")[0]


@cache
def _class_name(protocol: type, name: str) -> str | None:
    """The one component class of a module, by its source; None where there is no such module, or no such class in
    it."""
    spec = importlib.util.find_spec(f"{package_of(protocol)}.{name}")
    is_module = spec is not None and spec.submodule_search_locations is None and spec.name != protocol.__module__
    source = getattr(spec.loader, "get_source", lambda _: None)(spec.name) if spec and is_module else None
    if source is None:
        return None
    found = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and _is_component(node)]
    return found[0] if len(found) == 1 else None


def _is_component(node: ast.ClassDef) -> bool:
    """Whether a class is public and decorated with @dataclass(frozen=True, kw_only=True)."""
    for call in (decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)):
        given = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
        if ast.unparse(call.func).endswith("dataclass") and all(given.get(word) is True for word in DECORATOR):
            return not node.name.startswith("_")
    return False
