"""Supervised fine-tuning: next-token loss on the completion alone; in chats, on every assistant turn.

    loss = Σ_tokens −log p(token | prompt, tokens before) / number of completion tokens in the step

The end of the answer is a label like any other, so that the tuned model learns to stop. TRL's SFTTrainer trains
causal bases, transformers' Seq2SeqTrainer encoder-decoder ones.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.data.records import Chat, Record, Supervised
from raytune_llm.method import IGNORED, Example, Outputs, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from raytune_llm.data.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Learn to answer as the records do."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""

    records = (Supervised, Chat)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        if isinstance(record, Chat):
            sequence = tokens.conversation(record.messages)
        else:
            assert isinstance(record, Supervised)
            sequence = tokens.completion(record.prompt, record.completion)
        return None if sequence is None else {"completion": sequence}

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        num_tokens = completion.mask.sum(-1)
        return {
            "loss": Term(-(completion.logprobs * completion.mask).sum(-1), num_tokens),
            "token_accuracy": Term(completion.correct.sum(-1), num_tokens, coefficient=0.0),
        }

    def trainer(
        self,
        model: PreTrainedModel,
        examples: Seq[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        from datasets import Dataset

        columns = [{"input_ids": e["completion"].input_ids, "labels": e["completion"].labels} for e in examples]
        dataset = Dataset.from_list(columns).select(indices)
        if model.config.is_encoder_decoder:
            from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

            return Seq2SeqTrainer(
                model=model,
                args=Seq2SeqTrainingArguments(**arguments),
                train_dataset=dataset,
                data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED),
                processing_class=tokenizer,
                callbacks=callbacks,
            )
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=model,
            args=SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
