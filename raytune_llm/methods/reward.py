"""A reward model from preferences (Bradley and Terry, 1952; as in Ouyang et al., 2022, arXiv 2203.02155).

    p(chosen beats rejected) = σ(s(chosen) − s(rejected))        loss = mean over pairs of −log p

A score s is a linear function of the last token's hidden state. Only differences of scores are learned; `centering`
adds centering · mean (s(chosen) + s(rejected))² (Eisenstein et al., 2023, arXiv 2312.09244), so that scores of
different prompts can be averaged. TRL's RewardTrainer trains causal bases, a transformers Trainer with the same terms
encoder-decoder ones. Leaves out: margins given in the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.data.examples import Example
from raytune_llm.data.question import question
from raytune_llm.data.records import Preference, Record, Text
from raytune_llm.data.tables.arrow import as_dataset
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.base import Needs, TrainerConfig
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from transformers import Trainer

    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import CheckContext, TrainerInputs


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Learn to score answers as the preferences rank them."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    centering: float
    """Weight of the mean squared sum of a pair's scores, which keeps scores around 0; ≥ 0, 0 = none."""

    records = (Preference,)
    needs = Needs(score=True)

    def __post_init__(self) -> None:
        require(self.centering >= 0, "method.centering", self.centering, "≥ 0")

    def check(self, context: CheckContext) -> None:
        """Any base and any of its records will do."""

    def question(self, record: Record) -> tuple[Text, str] | None:
        return question(record)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        assert isinstance(record, Preference)
        chosen, rejected = (tokens.judged(record.prompt, answer) for answer in (record.chosen, record.rejected))
        return None if chosen is None or rejected is None else {"chosen": chosen, "rejected": rejected}

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        import torch
        from torch.nn.functional import logsigmoid

        chosen, rejected = outputs["chosen"].score, outputs["rejected"].score
        assert chosen is not None and rejected is not None
        margin = chosen - rejected
        pair = torch.ones_like(margin)
        right = (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)
        found = {
            "preference_loss": Term(-logsigmoid(margin), pair),
            "accuracy": Term(right.detach(), pair, coefficient=0.0, better=Better.higher),
            "margin": Term(margin.detach(), pair, coefficient=0.0, better=Better.higher),
        }
        if self.centering:
            found["centering_loss"] = Term((chosen + rejected).square(), pair, self.centering)
        return found

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        if inputs.model.config.is_encoder_decoder:
            from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

            return loss_terms_trainer(self.terms, inputs)
        from trl import RewardTrainer

        columns = {f"{name}_ids": (name, "input_ids") for name in ("chosen", "rejected")}
        return RewardTrainer(
            model=inputs.model,
            args=self.trainer_config(is_encoder_decoder=False).build(
                inputs.arguments,
                max_length=None,
                disable_dropout=False,
                center_rewards_coefficient=self.centering or None,
                pad_token=inputs.tokenizer.convert_ids_to_tokens(inputs.model.config.get_text_config().pad_token_id),
            ),
            train_dataset=as_dataset(inputs.examples, inputs.indices, columns),
            processing_class=inputs.tokenizer,
            callbacks=inputs.callbacks,
        )

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        if is_encoder_decoder:
            from raytune_llm.methods.trainers.loss_terms import terms_config

            return terms_config()
        from trl import RewardConfig

        own = {"max_length", "disable_dropout", "center_rewards_coefficient", "pad_token"}
        return TrainerConfig(kind=RewardConfig, own=frozenset(own))
