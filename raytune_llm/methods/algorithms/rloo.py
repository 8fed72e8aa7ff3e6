"""REINFORCE leave-one-out (Ahmadian et al., 2024, arXiv 2402.14740), by TRL's trainer.

advantage of completion i = R_i − mean of R_j over its siblings j ≠ i
R = reward − kl_coefficient · (log π(y | x) − log π_ref(y | x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True, kw_only=True)
class RLOO:
    """Compare each completion with the mean of its siblings; the KL penalty is part of the reward."""

    def trainer_class(self) -> type[Trainer]:
        from trl import RLOOTrainer

        return RLOOTrainer

    def config_class(self) -> type[TrainingArguments]:
        from trl import RLOOConfig

        return RLOOConfig
