"""Where a policy's training begins: on the base, in an adapter that is given, or in one that learns given answers
first."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.errors import require
from raytune_llm.methods.base import Method, Stage

CHOSEN = "chosen"
"""The answers that the job's own preferences prefer, as a location."""


@dataclass(frozen=True, kw_only=True)
class PolicyInit:
    """What the methods that train a policy have in common."""

    init_adapter: str | None
    """Registry reference of an adapter that training goes on in and that is the reference; its size and settings are
    inherited. null = the one that sft_data gives, or a new one on the base."""
    sft_data: str | None
    """Location of answers (as data.train) that an adapter learns first, in which training goes on; chosen = the
    preferred answers of data.train; null = no such stage."""
    sft_steps: int
    """Steps of that stage; ≥ 1."""
    sft: Method
    """The method that trains it."""

    def __post_init__(self) -> None:
        require(self.sft_steps >= 1, "method.sft_steps", self.sft_steps, "≥ 1")

    def sft_stages(self) -> tuple[Stage, ...]:
        """The stage that learns given answers, unless there is none, or an adapter is there already."""
        if self.sft_data is None or self.init_adapter is not None:
            return ()
        stage = Stage(
            name="sft",
            meaning="an adapter that learns given answers",
            method=self.sft,
            steps=self.sft_steps,
            data=None if self.sft_data == CHOSEN else self.sft_data,
            key="init_adapter",
            instead="name records of answers with method.sft_data=FILE, or leave the stage out: method.sft_data=null",
        )
        return (stage,)
