"""The engines that draw a policy's completions in training: one file each, chosen by conf/method/sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Sampler(Protocol):
    """What conf/method/sampler chooses."""

    @property
    def gpu_for(self) -> str | None:
        """The setting that needs a GPU, as the user writes it; None where a CPU will do."""
        ...

    def check(self) -> None:
        """Raise InputError when it can't be had on this machine."""
        ...

    def arguments(self, stop_ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
        """TRL's settings (of RLOOConfig and GRPOConfig) that choose it. stop_ids: tokens that end a completion;
        max_tokens: longest prompt with its completion."""
        ...
