"""Tune, sweep, compare and serve large language models on your own Ray cluster.

    import raytune_llm

    raytune_llm.compose("train", ["model=demo", "data=demo_sarcasm", "name=mine"]).run()
    raytune_llm.Registry("/data/home/registry").resolve("mine").card.metrics

Importing the package imports nothing else: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytune_llm.jobs.api import Command, compose
    from raytune_llm.stores.registry import Registry

__all__ = ["Command", "Registry", "compose"]

HOMES = {
    "Command": "raytune_llm.jobs.api",
    "compose": "raytune_llm.jobs.api",
    "Registry": "raytune_llm.stores.registry",
}
"""Public names with the modules that define them."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("raytune-llm")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES, "__version__"])
