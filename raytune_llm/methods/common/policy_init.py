"""Policy initialisation: training starts from the base, in an adapter that is given, or in one that learns given
answers first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raytune_llm.errors import InputError, require
from raytune_llm.methods.base import Method, Stage
from raytune_llm.methods.common.adapter_init import AdapterInit, check_inherits
from raytune_llm.stores.locations import LOCATION

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext

CHOSEN = "chosen"
"""As a location: the answers that the job's own preferences prefer."""


@dataclass(frozen=True, kw_only=True)
class PolicyInit(AdapterInit):
    """The keys that the methods which train a policy have in common."""

    init_adapter: str | None
    """Registry reference of the adapter in which training continues and which is the reference; its size and settings
    are inherited. null = the one that sft_data gives, or a new one on the base."""
    sft_data: str | None = field(metadata=LOCATION)
    """Location of answers (as data.train) that an adapter learns first, in which training continues; chosen = the
    preferred answers of data.train; null = no such stage."""
    sft_steps: int
    """Steps of that stage; ≥ 1."""
    sft: Method
    """The method that trains it."""

    def __post_init__(self) -> None:
        require(self.sft_steps >= 1, "method.sft_steps", self.sft_steps, "≥ 1")

    def init_stages(self) -> tuple[Stage, ...]:
        """The stage that learns given answers, unless there is none, or an adapter is named."""
        if self.sft_data is None or self.init_adapter is not None:
            return ()
        stage = Stage(
            name="sft",
            meaning="an adapter that learns given answers",
            method=self.sft,
            steps=self.sft_steps,
            data=None if self.sft_data == CHOSEN else self.sft_data,
            data_key="method.sft_data",
            key="method.init_adapter",
            keys=("method.sft_data", "method.sft_steps", "method.sft"),
            remedy="name records of answers with method.sft_data=FILE, or leave the stage out: method.sft_data=null",
        )
        return (stage,)

    def check(self, context: CheckContext) -> None:
        """Refuse two starting points, one that is never read, and settings that the first adapter decides. Raises
        InputError."""
        if context.adapter is None:
            return
        given = f"method.sft_data={self.sft_data}"
        if self.init_adapter is not None and self.sft_data is not None:
            raise InputError(
                f"method.init_adapter={self.init_adapter} and {given} both set where training starts; give one"
            )
        super().check(context)
        if self.sft_data is not None:
            check_inherits(context, given)
        elif (unread := self.sft.needs.init_adapter) is not None:
            raise InputError(
                f"method.sft.init_adapter={unread} is read with method.sft_data only; to continue in that adapter, set "
                f"method.init_adapter={unread}"
            )
