"""Supervised fine-tuning: next-token loss on the completion only; in chats, on every assistant turn; of preferences,
on the preferred answer; of plain texts, on all of them.

    loss = Σ_tokens −log p(token | prompt, tokens before) / number of completion tokens in the step

The end of the answer is a label like any other, so that the tuned model learns to stop. TRL's SFTTrainer trains
causal bases, a transformers Trainer by these terms encoder-decoder ones (transformers' own loss of T5 takes no count of
a step's labels, so that accumulation would multiply it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.data.examples import Example
from raytune_llm.data.question import question
from raytune_llm.data.records import Chat, PlainText, Preference, Record, Supervised, Text
from raytune_llm.data.tables.arrow import as_dataset
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.base import Needs, TrainerConfig
from raytune_llm.methods.common.adapter_init import AdapterInit
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from transformers import Trainer

    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import TrainerInputs


@dataclass(frozen=True, kw_only=True)
class SFT(AdapterInit):
    """Learn to answer as the records do."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""

    records = (Supervised, Chat, Preference, PlainText)

    @property
    def needs(self) -> Needs:
        return Needs(init_adapter=self.init_adapter, shared_keys=self.init_keys)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        if isinstance(record, Chat):
            sequence = tokens.conversation(record.messages)
        elif isinstance(record, Preference):
            sequence = tokens.completion(record.prompt, record.chosen)
        elif isinstance(record, PlainText):
            sequence = tokens.text(record.text)
        else:
            assert isinstance(record, Supervised)
            sequence = tokens.completion(record.prompt, record.completion)
        return None if sequence is None else {"completion": sequence}

    def question(self, record: Record) -> tuple[Text, str] | None:
        return question(record)

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        num_tokens = completion.mask.sum(-1)
        return {
            "loss": Term(-(completion.logprobs * completion.mask).sum(-1), num_tokens),
            "token_accuracy": Term(completion.correct.sum(-1), num_tokens, coefficient=0.0, better=Better.higher),
        }

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        if inputs.model.config.is_encoder_decoder:
            from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

            return loss_terms_trainer(self.terms, inputs)
        from trl import SFTTrainer

        config = self.trainer_config(is_encoder_decoder=False)
        columns = {field: ("completion", field) for field in ("input_ids", "labels")}
        return SFTTrainer(
            model=inputs.model,
            args=config.build(inputs.arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=as_dataset(inputs.examples, inputs.indices, columns),
            processing_class=inputs.tokenizer,
            callbacks=inputs.callbacks,
        )

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        if is_encoder_decoder:
            from raytune_llm.methods.trainers.loss_terms import terms_config

            return terms_config()
        from trl import SFTConfig

        return TrainerConfig(kind=SFTConfig, own=frozenset({"max_length", "dataset_kwargs"}))
