"""The model that is trained draws its own completions: any device, any base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """transformers' generate, in the training process."""

    gpu_for = None

    def check(self) -> None:
        """It always can be had."""

    def arguments(self, stop_ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
        """None: it is TRL's default, and stops by the model's generation config."""
        return {}
