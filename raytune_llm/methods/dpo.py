"""Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290): learn preferences without a reward model.

    r(y) = beta · (log π(y | x) − log π_ref(y | x))        loss = mean over pairs of −log σ(r(chosen) − r(rejected))

The reference is the model that training starts from, the base or an adapter on it; its log-probabilities are computed
once, before training. A large margin is also reached by making both answers unlikely, and a small base then gives
neither: `sft_weight` adds next-token loss on the chosen ones (Pang et al., 2024, arXiv 2404.19733). TRL's DPOTrainer
trains causal bases; encoder-decoder ones, and sft_weight, whose token mean TRL takes within micro-batches, a
transformers Trainer with the same terms. Leaves out: the many other variants of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.question import question
from raytune_llm.data.records import Preference, Record, Text
from raytune_llm.data.tables.arrow import as_dataset
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.base import Needs, TrainerConfig
from raytune_llm.methods.common.policy_init import PolicyInit
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import TrainerInputs

NAMES = ("chosen", "rejected")
COLUMNS = {f"{name}_ids": (name, "input_ids") for name in NAMES}
COLUMNS |= {f"{name}_labels": (name, "labels") for name in NAMES}
COLUMNS |= {f"ref_{name}_logps": (name, "reference") for name in NAMES}
"""Of TRL's data set: what each holds of an example."""


@dataclass(frozen=True, kw_only=True)
class DPO(PolicyInit):
    """Learn to prefer the answers that the records prefer, without leaving the reference further than beta allows."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    beta: float
    """Strength of the KL penalty towards the reference: larger stays closer. > 0; 0.01 to 0.5 is usual."""
    sft_weight: float
    """Weight of next-token loss on the chosen answers, which keeps a policy from losing both answers; ≥ 0, 0 = none."""

    records = (Preference,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "method.beta", self.beta, "> 0")
        require(self.sft_weight >= 0, "method.sft_weight", self.sft_weight, "≥ 0")

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=True, init_adapter=self.init_adapter, stages=self.init_stages(), shared_keys=self.init_keys
        )

    def question(self, record: Record) -> tuple[Text, str] | None:
        return question(record)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        assert isinstance(record, Preference)
        chosen, rejected = (tokens.completion(record.prompt, answer) for answer in (record.chosen, record.rejected))
        return None if chosen is None or rejected is None else {"chosen": chosen, "rejected": rejected}

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        import torch
        from torch.nn.functional import logsigmoid

        chosen, rejected = self._reward(outputs["chosen"]), self._reward(outputs["rejected"])
        margin = chosen - rejected
        pair = torch.ones_like(margin)
        right = (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)
        metrics = {
            "accuracies": (right, Better.higher),
            "margins": (margin, Better.higher),
            "chosen": (chosen, Better.neither),
            "rejected": (rejected, Better.neither),
        }
        answer = outputs["chosen"]
        return {
            "preference_loss": Term(-logsigmoid(margin), pair),
            "sft_loss": Term(-(answer.logprobs * answer.mask).sum(-1), answer.mask.sum(-1), self.sft_weight),
            **{f"rewards/{name}": Term(value.detach(), pair, 0.0, better) for name, (value, better) in metrics.items()},
        }

    def _reward(self, answer: Outputs) -> Tensor:
        """The reward that the policy implies, (B,)."""
        assert answer.reference is not None
        return self.beta * ((answer.logprobs * answer.mask).sum(-1) - answer.reference)

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        if inputs.model.config.is_encoder_decoder or self.sft_weight:
            from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

            return loss_terms_trainer(self.terms, inputs)
        return _trainer_class()(
            model=inputs.model,
            args=self.trainer_config(is_encoder_decoder=False).build(
                inputs.arguments,
                remove_unused_columns=False,
                beta=self.beta,
                max_length=None,
                disable_dropout=False,
                precompute_ref_log_probs=True,
            ),
            data_collator=partial(collate, pad_id=inputs.tokenizer.pad_token_id),
            train_dataset=as_dataset(inputs.examples, inputs.indices, COLUMNS),
            processing_class=inputs.tokenizer,
            callbacks=inputs.callbacks,
        )

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        if is_encoder_decoder or self.sft_weight:
            from raytune_llm.methods.trainers.loss_terms import terms_config

            return terms_config()
        from trl import DPOConfig

        own = {"remove_unused_columns", "beta", "max_length", "disable_dropout", "precompute_ref_log_probs"}
        return TrainerConfig(kind=DPOConfig, own=frozenset(own))


def collate(rows: Sequence[dict[str, Any]], *, pad_id: int) -> dict[str, Tensor]:
    """TRL's batch: the chosen answers above the rejected ones, (2·B, T), padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row[f"{name}_ids"]) for name in NAMES for row in rows]
    labels = [torch.tensor(row[f"{name}_labels"]) for name in NAMES for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "completion_mask": pad_sequence([(one != IGNORED).long() for one in labels], batch_first=True),
        **{f"ref_{name}_logps": torch.tensor([row[f"ref_{name}_logps"] for row in rows]) for name in NAMES},
    }


def _trainer_class() -> type[Trainer]:
    """TRL's DPOTrainer on a dataset that is encoded and has its reference log-probabilities."""
    from trl import DPOTrainer

    class PrecomputedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return PrecomputedDPOTrainer
