"""DPO's terms in closed form, its batches for TRL, and what it refuses."""

import math

import pytest
import torch

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.tables.arrow import as_dataset
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.methods.dpo import COLUMNS, DPO, collate
from raytune_llm.models.outputs import Outputs


def outputs_of(logprobs, reference):
    found = torch.tensor(logprobs)
    return Outputs(found, torch.ones_like(found), torch.zeros_like(found), reference=torch.tensor(reference))


def dpo(sft_weight):
    return DPO(
        metric="eval/loss", beta=0.5, sft_weight=sft_weight, init_adapter=None, sft_data=None, sft_steps=1, sft=None
    )


def test_the_loss_in_closed_form():
    """Eq. 7 of arXiv 2305.18290."""
    outputs = {
        "chosen": outputs_of([[-1.0, -2.0], [-1.0, 0.0]], [-4.0, -1.0]),
        "rejected": outputs_of([[-5.0], [-2.0]], [-4.0, -4.0]),
    }
    terms = dpo(sft_weight=0.0).terms(outputs)
    chosen, rejected = [0.5, 0.0], [-0.5, 1.0]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert terms["preference_loss"].sum.tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in margins])
    assert terms["rewards/chosen"].sum.tolist() == chosen and terms["rewards/rejected"].sum.tolist() == rejected
    assert terms["rewards/margins"].sum.tolist() == margins and terms["rewards/accuracies"].sum.tolist() == [1.0, 0.0]
    assert [name for name, term in terms.items() if term.coefficient] == ["preference_loss"]


def test_the_chosen_answers_may_be_learned_too():
    outputs = {"chosen": outputs_of([[-1.0, -2.0]], [-4.0]), "rejected": outputs_of([[-5.0, 0.0]], [-4.0])}
    term = dpo(sft_weight=0.3).terms(outputs)["sft_loss"]
    assert (term.sum.tolist(), term.weight.tolist(), term.coefficient) == ([3.0], [2.0], 0.3)


def test_trl_gets_the_projects_own_labels_and_references():
    example = {
        "chosen": TokenSequence([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8], reference=-1.5),
        "rejected": TokenSequence([5, 6, 9], [IGNORED, IGNORED, 9], reference=-2.5),
    }
    batch = collate([*as_dataset([example], [0], COLUMNS)], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5] and batch["ref_rejected_logps"].tolist() == [-2.5]


def test_a_beta_of_zero_is_refused():
    with pytest.raises(InputError, match=r"method\.beta=0\.0 is not allowed; allowed: > 0"):
        load("train", ["method=dpo", "method.beta=0.0", "model=demo", "data=demo_preference"])
