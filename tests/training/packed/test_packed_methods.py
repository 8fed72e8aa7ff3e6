"""Every method with terms trains packed as its own trainer trains it: dropout 0, same initial weights, same order of
examples.

Parametrized over conf/method/*.yaml, so that a new method arrives tested. Tolerance: fp32 on both sides, and Adam's
m/√v turns the rounding of gradients near 0 into steps of the size of the rate; losses agree to 1e-4 and weights,
relative to the distance they moved, to 1e-2.
"""

import json
from pathlib import Path

import pytest
import torch
from packed_oracle import BUDGET, distance, make_spec, peft_weights, table_of

from raytune_llm.data import demo
from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.order import first_indices
from raytune_llm.data.records import RecordError
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs import config
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.methods.base import TrainerInputs
from raytune_llm.models.lora_folder import target_names
from raytune_llm.models.lora_weights import initial_weights
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.eligibility import not_packable_reason
from raytune_llm.training.packed.pack import Pack

CONF = Path(__file__).parents[3] / "conf" / "method"
DEMO = Path(demo.__file__).parent
STEPS, BATCH_SIZE = 6, 4


def demo_examples(method, tokens, count=30):
    """The first demo records of a kind that the method takes."""
    for file in sorted((DEMO / "data").glob("*/train.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()[:count]]
        try:
            records = [parse(line, method.records) for line in lines]
        except RecordError:
            continue
        examples = [example for record in records if (example := method.encode(record, tokens)) is not None]
        if examples:
            return examples
    raise AssertionError(f"no demo data of kinds {method.records}")


SETTINGS = [*([file.stem] for file in sorted(CONF.glob("*.yaml"))), ["dpo", "method.sft_weight=0"]]
"""Every method as it is in conf/, and settings that take another trainer."""


@pytest.mark.parametrize("settings", SETTINGS, ids="-".join)
def test_packed_equals_the_methods_own_trainer(settings, tmp_path):
    name, *others = settings
    job = config.load("train", [f"method={name}", "model=demo", "data=demo_sarcasm", "adapter=lora", "name=t", *others])
    model, tokenizer = job.model.load(score=job.method.needs.score), job.model.tokenizer()
    lora = job.adapter.config(model, lora_rank=4)
    if job.method.needs.sampling:
        assert "samples" in str(not_packable_reason(lora, job.method, model))
        return
    if job.method.needs.not_packable_reason:
        assert job.method.needs.not_packable_reason in str(not_packable_reason(lora, job.method, model))
        return
    assert not_packable_reason(lora, job.method, model) is None
    tokens = Tokens(tokenizer, max_tokens=128, is_encoder_decoder=False)
    examples = demo_examples(job.method, tokens)
    examples = FrozenModels.of(job, use_gpu=False).with_logprobs(examples)
    spec = make_spec(
        "t",
        lora_rank=4,
        learning_rate=1e-3,
        batch_size=BATCH_SIZE,
        seed=3,
        schedule=Schedule.linear,
        num_steps=STEPS,
        warmup_steps=2,
        weight_decay=0.1,
    )
    adapted = job.adapter.apply(job.model.load(score=job.method.needs.score), lora_rank=spec.lora_rank, seed=spec.seed)
    arguments = {
        "output_dir": str(tmp_path),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": spec.warmup_steps,
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.max_grad_norm,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "bf16": False,
    }
    trainer = job.method.trainer(
        TrainerInputs(
            model=adapted,
            examples=examples,
            indices=first_indices(range(len(examples)), spec.seed, STEPS * BATCH_SIZE),
            tokenizer=tokenizer,
            arguments=arguments,
            callbacks=[],
        )
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    pack = Pack(model, target_names(lora, model), capacity=3, max_lora_rank=8, budget=BUDGET)
    table = table_of(examples, model)
    pack.join(make_spec("neighbour", lora_rank=8, batch_size=BATCH_SIZE), table, job.method.terms)
    pack.join(spec, table, job.method.terms)
    found = [pack.step()["t"].metrics["loss"] for _ in range(STEPS)]
    assert found == pytest.approx(losses, rel=1e-4)
    start = initial_weights(model, pack.names, lora_rank=spec.lora_rank, seed=spec.seed)
    expected = peft_weights(adapted)
    moved = distance(start, expected)
    assert moved > 1e-3
    assert distance(pack.weights("t"), expected) < 1e-2 * moved
    heads = {name.split(".")[-4]: p for name, p in adapted.named_parameters() if ".modules_to_save." in name}
    assert pack.heads("t").keys() == heads.keys()
    for head, trained in pack.heads("t").items():
        moved = (heads[head].flatten() - model.get_submodule(head).weight.flatten()).norm()
        assert moved > 1e-3
        assert (trained - heads[head].flatten()).norm() < 1e-2 * moved
    assert torch.isfinite(torch.tensor(found)).all()
