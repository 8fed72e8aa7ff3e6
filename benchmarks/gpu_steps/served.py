"""Served against PEFT: the project's own parity check over adapters of a real small base in bf16; of the same with
logits twice as large, up to 35, where a bf16 head would round them to multiples of 0.25; and in fp32, where all tokens
of an answer are compared, so that decoding steps and their graphs count, too.

In bf16 the check looks at first tokens. So answers over mixed adapters, which join one after another, are also compared
with the same without CUDA graphs, without row kernels and without grouped products: log-probabilities up to the first
other token.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs.config import load
from raytune_llm.jobs.schema import ServeJob
from raytune_llm.models.base import Base, DType
from raytune_llm.serving.engine.base import Engine, Sampling, ServedModel
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import ParityError

from .step import Step, main

RANKS = (1, 4, 8, 16)
MIXED_TOKENS = 12
LOGIT_FACTOR = 2.0
PROBES = ["Ana missed the bus and stood in the rain. She wrote: what a day.", "Is glad a good or a bad feeling?"]


def run(step: Step) -> None:
    demo: Base = load("train", ["model=demo", "data=demo_sarcasm"]).model
    base = replace(demo, dtype=DType.bfloat16)
    step.add(**verdicts("plain", base, step, mixed=True))
    larger = replace(base, name_or_path=str(with_larger_logits(Path(base.name_or_path), step.scratch / "larger")))
    step.add(**verdicts("larger_logits", larger, step))
    step.add(**verdicts("exact", replace(demo, dtype=DType.float32), step))


def verdicts(kind: str, base: Base, step: Step, *, mixed: bool = False) -> dict[str, Any]:
    """How many adapters pass, the largest difference of log-probabilities, why one failed, and how answers over `mixed`
    adapters differ without graphs and grouped products."""
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
        others = mixed_differences(engine, base) if mixed else {}
    finally:
        engine.close()
    found = {f"{kind}_passed": passed, f"{kind}_of": len(RANKS), f"{kind}_nats": largest, f"{kind}_reason": reason}
    return found | others


def mixed_differences(engine: Engine, base: Base) -> dict[str, Any]:
    """Root mean square of the differences, nats, and how much was recorded and grouped."""
    graphs, cache = engine._resident._batch.rows[0].decoding.graphs, engine._resident.adapter_cache
    own = mixed_answers(engine, base)
    found = {"graphs": len(graphs), "is_grouped": cache._routes.is_grouped}
    found["has_row_kernels"] = cache._routes.row_kernels is not None
    for name, owner, switch, off in (
        ("without_graphs", graphs, "_capture", None),
        ("without_row_kernels", cache._routes, "row_kernels", None),
        ("without_groups", cache._routes, "is_grouped", False),
    ):
        graphs.clear()
        setattr(owner, switch, off)
        found[name + "_nats"] = root_mean_square(own, mixed_answers(engine, base))
    return found


def mixed_answers(engine: Engine, base: Base) -> list[list[tuple[str, float]]]:
    """The tokens of greedy answers over all adapters, three each, and their log-probabilities. Prompts have various
    lengths, and answers join while others decode."""
    tokens = Tokens(base.tokenizer(), max_tokens=None, is_encoder_decoder=False)
    sampling = Sampling(
        max_tokens=MIXED_TOKENS, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=1, stream=True
    )

    async def answer(place: int) -> list[tuple[str, float]]:
        await asyncio.sleep(0.02 * (place % 3))
        prompt = tokens.prompt(PROBES[place % 2][: 20 + 3 * place], max_new_tokens=MIXED_TOKENS)
        stream = engine.generate(f"rank{RANKS[place % len(RANKS)]}", prompt, sampling)
        return [(token.text, token.logprob) async for delta in stream for token in delta.logprobs]

    async def together() -> list[list[tuple[str, float]]]:
        return await asyncio.gather(*map(answer, range(3 * len(RANKS))))

    return asyncio.run(together())


def root_mean_square(one: list[list[tuple[str, float]]], other: list[list[tuple[str, float]]]) -> float:
    """Of the differences of log-probabilities up to each answer's first other token."""
    squares = []
    for left, right in zip(one, other, strict=True):
        for (text, logprob), (other_text, other_logprob) in zip(left, right, strict=False):
            squares.append((logprob - other_logprob) ** 2)
            if text != other_text:
                break
    return math.sqrt(sum(squares) / len(squares))


def load_engine(
    base: Base,
    step: Step,
    *,
    rows: int,
    adapters: int,
    lora_rank: int,
    fused: bool = True,
    chunk_tokens: int | None = None,
) -> Engine:
    """The local engine as `serve` sets it up, with room for so many adapters and answers at once, and pointwise parts
    `fused` on a GPU; chunk_tokens: of prompts, between two steps."""
    settings = [f"serve.engine.max_resident_adapters={adapters}", f"serve.engine.max_adapter_size={lora_rank}"]
    settings += [f"serve.engine.use_gpu={str(step.on_gpu).lower()}"]
    settings += [f"serve.engine.compile={'null' if fused else 'false'}"]
    settings += [f"serve.engine.prefill_chunk_tokens={chunk_tokens or 'null'}"]
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
