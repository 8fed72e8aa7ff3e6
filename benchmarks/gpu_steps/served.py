"""Served against PEFT in bf16: the project's own parity check over adapters of a real small base, and of the same with
logits twice as large, up to 35, where a bf16 head would round them to multiples of 0.25."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from raytune_llm.data.tokens import Tokens
from raytune_llm.jobs.config import load
from raytune_llm.jobs.schema import ServeJob
from raytune_llm.models.base import Base, DType
from raytune_llm.serving.engine.base import Engine, ServedModel
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import ParityError

from .step import Step, main

RANKS = (1, 4, 8, 16)
LOGIT_FACTOR = 2.0
PROBES = ["Ana missed the bus and stood in the rain. She wrote: what a day.", "Is glad a good or a bad feeling?"]


def run(step: Step) -> None:
    demo: Base = load("train", ["model=demo", "data=demo_sarcasm"]).model
    base = replace(demo, dtype=DType.bfloat16)
    step.add(**verdicts("plain", base, step))
    larger = replace(base, name_or_path=str(with_larger_logits(Path(base.name_or_path), step.scratch / "larger")))
    step.add(**verdicts("larger_logits", larger, step))


def verdicts(kind: str, base: Base, step: Step) -> dict[str, Any]:
    """How many adapters pass, the largest difference of log-probabilities, and why one failed."""
    tokens = Tokens(base.tokenizer(), max_tokens=None, is_encoder_decoder=False)
    engine = load_engine(base, step, rows=8, adapters=len(RANKS), lora_rank=max(RANKS))
    largest, passed, reason = 0.0, 0, None
    try:
        for rank in RANKS:
            folder = write_adapter(base, step.scratch / f"{kind}-{rank}", rank)
            model = ServedModel(f"rank{rank}", "adapter", folder, tokens, ())
            engine.add(model)
            try:
                found = check_engine(engine, model, PROBES)
                largest, passed = max(largest, found.reference_difference_nats), passed + 1
            except ParityError as error:
                reason = str(error)
    finally:
        engine.close()
    return {f"{kind}_passed": passed, f"{kind}_of": len(RANKS), f"{kind}_nats": largest, f"{kind}_reason": reason}


def load_engine(base: Base, step: Step, *, rows: int, adapters: int, lora_rank: int) -> Engine:
    """The local engine as `serve` sets it up, with room for so many adapters and answers at once."""
    settings = [f"serve.engine.max_resident_adapters={adapters}", f"serve.engine.max_adapter_size={lora_rank}"]
    settings += [f"serve.engine.use_gpu={str(step.on_gpu).lower()}"]
    job: ServeJob = load("serve", ["adapter=any", *settings])
    return job.serve.engine.load(base, max_running=rows)


def write_adapter(base: Base, folder: Path, rank: int) -> Path:
    torch.manual_seed(rank)
    adapted = get_peft_model(base.load(), LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(folder))
    base.tokenizer().save_pretrained(folder)
    return folder


def with_larger_logits(base: Path, folder: Path) -> Path:
    """A copy of a base whose last norm, and so every logit, is LOGIT_FACTOR times as large."""
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * LOGIT_FACTOR
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    main(run)
