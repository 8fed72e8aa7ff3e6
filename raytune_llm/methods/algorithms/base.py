"""The contract of an algorithm: one file each in this folder, chosen by conf/method/algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


class Algorithm(Protocol):
    """What conf/method/algorithm chooses: a trainer of TRL's that samples completions and learns from their rewards."""

    def trainer_class(self) -> type[Trainer]:
        """TRL's trainer."""
        ...

    def config_class(self) -> type[TrainingArguments]:
        """TRL's config of that trainer."""
        ...
