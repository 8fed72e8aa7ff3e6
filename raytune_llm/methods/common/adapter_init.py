"""Continuous tuning: training continues in an adapter of the registry, with new records or for more steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.errors import InputError, require
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.choices import name_of

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext


@dataclass(frozen=True, kw_only=True)
class AdapterInit:
    """The key by which a method starts from an adapter instead of from the base."""

    init_adapter: str | None
    """Registry reference (NAME@version, NAME@alias) of the adapter in which training continues; its size and settings
    are inherited. null = a new adapter on the base."""

    init_keys = ("method.init_adapter",)
    """Keys, in full, that have one value for all trials."""

    def check(self, context: CheckContext) -> None:
        """Refuse an adapter that training can't continue in. Raises InputError."""
        if context.adapter is None or self.init_adapter is None:
            return
        from raytune_llm.methods.model_refs import resolve_ref
        from raytune_llm.stores.registry import Registry

        check_inherits(context, f"method.init_adapter={self.init_adapter}")
        registry = Registry(context.registry_dir)
        resolve_ref(registry, "method.init_adapter", self.init_adapter, kind="adapter", base=context.base)


def check_inherits(context: CheckContext, given: str) -> None:
    """Refuse settings that the adapter of a start, `given` as key=value, decides. Raises InputError."""
    assert context.adapter is not None
    kind = name_of(context.adapter, Adapter)
    require(context.adapter.kind == "adapter", "adapter", kind, f"lora with {given}")
    for axis in sorted(context.swept):
        if axis == "tuning.adapter_size" or axis.startswith("adapter."):
            raise InputError(
                f"sweep.space.{axis} can't be swept with {given}: training continues in that adapter, whose size "
                f"and settings are inherited; take the axis out of the space with sweep.space.{axis}=null"
            )
