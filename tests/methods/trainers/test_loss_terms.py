"""The trainer by terms learns as TRL's does where TRL has one, and as transformers' does for encoder-decoder bases."""

from functools import partial

import pytest
import torch
from worlds import precomputed, write_base, write_records

from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.methods.base import TrainerInputs
from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

PAIRS = ["dpo", "method.sft_weight=0"]
SETTINGS = [
    (["sft"], "llama", 1),
    (["sft"], "llama", 2),
    (["sft"], "t5", 1),
    (["reward"], "llama", 1),
    (["reward"], "llama", 2),
    (PAIRS, "llama", 1),
    (PAIRS, "llama", 2),
]
"""Not T5 with accumulation: transformers' loss for it ignores the number of labels in a step, which it is given."""


@pytest.mark.parametrize(("settings", "shape", "accumulation"), SETTINGS)
def test_it_learns_as_the_methods_own_trainer(settings, shape, accumulation, tmp_path):
    method, *others = settings
    base = write_base(tmp_path / "base", shape)
    kinds = load("check", [f"method={method}", "model=demo", "data=demo_sarcasm"]).method.records
    train, evaluation = write_records(tmp_path, kinds=kinds)
    job = load(
        "train",
        [
            f"method={method}",
            f"model.name_or_path={base}",
            f"data.train={train}",
            f"data.eval={evaluation}",
            f"home={tmp_path}",
            *others,
        ],
    )
    prepared = prepare(job)
    examples = precomputed(job).examples.train
    arguments = dict(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        logging_steps=1,
        activation_checkpointing=False,
    )
    losses, weights = [], []
    for make in (job.method.trainer, partial(loss_terms_trainer, job.method.terms)):
        model = job.adapter.apply(job.model.load(score=job.method.needs.score), lora_rank=4, seed=0)
        inputs = TrainerInputs(
            model=model,
            examples=examples,
            indices=list(range(16)),
            tokenizer=prepared.tokens.tokenizer,
            arguments=arguments,
            callbacks=[],
        )
        trainer = make(inputs)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (weights[1] - weights[0]).norm() < 1e-2 * weights[0].norm()
