"""Group relative policy optimisation (Shao et al., 2024, arXiv 2402.03300), by TRL's trainer.

advantage of completion i = (r_i − mean of its group) / standard deviation of its group
loss = −advantage-weighted log-likelihood + kl_coefficient · KL(π ‖ π_ref)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Divide by the spread of each prompt's completions; the KL penalty is part of the loss."""

    def trainer_class(self) -> type[Trainer]:
        from trl import GRPOTrainer

        return GRPOTrainer

    def config_class(self) -> type[TrainingArguments]:
        from trl import GRPOConfig

        return GRPOConfig
