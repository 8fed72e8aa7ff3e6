"""On-policy distillation (Agarwal et al., 2024, arXiv 2306.13649): a student samples answers and learns its
teacher's distribution in each of their places.

    loss = D(p, q) at temperature τ, mean over the tokens that the student sampled at τ

by TRL's DistillationTrainer, over the whole vocabulary. No answer of the records is learned; they are used at
evaluation: `terms` are the divergence on the records' own answers, over the teacher's k likeliest tokens, and the loss
and first choices there. The teacher is kept in memory with the student. Of a chat the last assistant turn is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.records import Chat, Supervised
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs, TrainerConfig
from raytune_llm.methods.common.distillation import Divergence, Student, divergence_term, label_terms, name_loss
from raytune_llm.models.outputs import Outputs
from raytune_llm.stores.locations import LOCATION

if TYPE_CHECKING:
    from transformers import Trainer

    from raytune_llm.methods.base import TrainerInputs

BETAS = {Divergence.forward: 0.0, Divergence.jensen_shannon: 0.5, Divergence.reverse: 1.0}
"""TRL's beta of each."""


@dataclass(frozen=True, kw_only=True)
class DistillOnPolicy(Student):
    """Learn a teacher's distribution over the student's own samples."""

    teacher: str | None = field(metadata=LOCATION)
    """NAME@VERSION of the registry, or a base by its folder or id on the hub, of the student's vocabulary; null = the
    student's own base."""
    divergence: Divergence
    """forward KL(teacher ‖ student), reverse KL(student ‖ teacher) or jensen_shannon."""
    temperature: float
    """Of sampling and of both distributions in the loss; > 0."""
    max_completion_tokens: int
    """Tokens sampled at most for a prompt; ≥ 1."""
    teacher_top_k: int
    """The teacher's likeliest tokens that are compared for each label token at evaluation; ≥ 1."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "method.temperature", self.temperature, "> 0")
        for name in ("max_completion_tokens", "teacher_top_k"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "≥ 1")

    records = (Supervised, Chat)  # an answer is sampled to their prompts

    @property
    def needs(self) -> Needs:
        return Needs(
            teacher_top_k=self.teacher_top_k,
            teacher=self.teacher,
            teacher_model=True,
            shared_keys=("method.teacher", "method.teacher_top_k"),
            decoder_only_reason="TRL's trainer that samples has no path for those; take method=distill with the same "
            "teacher",
            not_packable_reason="it learns from what the student samples, by TRL's trainer",
        )

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        labels = label_terms(completion, 0.0)
        if completion.teacher_logprobs is None:
            return name_loss(labels)
        return labels | {"divergence": divergence_term(completion, self.divergence, 1.0, 1.0)}

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        from datasets import Dataset
        from trl import DistillationTrainer

        from raytune_llm.data.tokenizing.tokens import Tokens
        from raytune_llm.methods.trainers.policy import encoded
        from raytune_llm.models.forward import unwrapped

        stop_ids = Tokens(inputs.tokenizer, max_tokens=None, is_encoder_decoder=False).stop_ids()
        unwrapped(inputs.model).generation_config.eos_token_id = list(stop_ids)
        prompts = [{"prompt": prompt_of(example["completion"])} for example in inputs.examples]
        return encoded(DistillationTrainer)(
            model=inputs.model,
            teacher_model=inputs.teacher,
            args=self.trainer_config(is_encoder_decoder=False).build(
                inputs.arguments,
                max_completion_length=self.max_completion_tokens,
                temperature=self.temperature,
                beta=BETAS[self.divergence],
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list(prompts).select(inputs.indices),
            processing_class=inputs.tokenizer,
            callbacks=inputs.callbacks,
        )

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        from trl import DistillationConfig

        own = {"max_completion_length", "temperature", "beta", "shuffle_dataset"}
        return TrainerConfig(kind=DistillationConfig, own=frozenset(own))


def prompt_of(sequence: TokenSequence) -> list[int]:
    """The tokens before the last stretch of label tokens."""
    end = len(sequence.labels)
    while sequence.labels[end - 1] == IGNORED:
        end -= 1
    while end and sequence.labels[end - 1] != IGNORED:
        end -= 1
    return sequence.input_ids[:end]
