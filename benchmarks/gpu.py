"""Packed training on a GPU: aggregate tokens per second and memory of 1, 4 and 16 slots against PEFT alone.

    python benchmarks/gpu.py             bf16, random Llama shapes of 1 B and 8 B parameters; ends within 8 minutes
    python benchmarks/gpu.py --smoke     the same code on a tiny base, on the CPU if need be: shows only that it runs

PEFT alone is the barest loop under bf16 autocast, as TRL would run it: full logits, fused AdamW, clip_grad_norm_, rank
16. Every token is a label. `share` is the model's own arithmetic over the time, as a part of the device's rate in one
large bf16 matmul measured at the start:

    FLOP a token = 4 · weights of linear layers (forward, and back to the inputs: frozen weights need no gradient)
                 + 6 · length · hidden · layers (causal attention)

so recomputed activations don't count as work. Rows run in order of interest until the time is up.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from token_trials import terms, trial
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raytune_llm.data.examples import TokenSequence
from raytune_llm.models.base import linear_targets
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import peft_config
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.memory import fit_tokens, free_bytes
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner

SHAPES = {  # hidden, layers, heads, key-value heads, intermediate, vocabulary
    "1b": (2048, 16, 32, 8, 8192, 128256),
    "8b": (4096, 32, 32, 8, 14336, 128256),
    "tiny": (64, 2, 4, 2, 128, 512),
}
RANK = 16
SLOTS = (1, 4, 16)
TIMED_STEPS = 4
MOST_STEPS_TO_SETTLE = 14
RESERVE_SECONDS = 15


@dataclass(frozen=True)
class Load:
    batch_size: int
    length: int


LOADS = {
    "1b": [Load(1, 128), Load(1, 512), Load(4, 512), Load(8, 128), Load(1, 2048), Load(4, 2048)],
    "8b": [Load(1, 128), Load(1, 512), Load(4, 512), Load(1, 2048), Load(8, 128)],
    "tiny": [Load(1, 16), Load(2, 32)],
}


def make_base(shape: str, device: torch.device) -> PreTrainedModel:
    hidden, layers, heads, key_value_heads, intermediate, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=shape == "1b",
        use_cache=False,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def flop_per_token(base: PreTrainedModel, length: int) -> float:
    weights = sum(module.weight.numel() for module in base.modules() if isinstance(module, torch.nn.Linear))
    return 4.0 * weights + 6.0 * length * base.config.hidden_size * base.config.num_hidden_layers


def matmul_rate(device: torch.device, size: int) -> float:
    """FLOP/s of one large bf16 matmul on random data."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 10 * 2 * size**3 / seconds_of(lambda: [a @ b for _ in range(10)], device, warm_up=1)


def seconds_of(function: Callable[[], Any], device: torch.device, *, warm_up: int) -> float:
    for _ in range(warm_up):
        function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fresh_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def make_spec(index: int, load: Load) -> Hyperparameters:
    return trial(index, lora_rank=RANK, batch_size=load.batch_size)


def token_ids(load: Load, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (16, load.length), generator=generator).tolist()


def solo_seconds(base: PreTrainedModel, load: Load, device: torch.device) -> float:
    """Seconds of a step of PEFT alone; leaves the base as it was."""
    config = peft_config(make_spec(0, load), linear_targets(base), is_encoder_decoder=False)
    adapted = get_peft_model(base, config).train()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.tensor(token_ids(load, base.config.vocab_size)[: load.batch_size], device=device)
    mask = torch.ones_like(ids)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = adapted(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        for _ in range(2):
            step()
        return seconds_of(lambda: [step() for _ in range(TIMED_STEPS)], device, warm_up=0) / TIMED_STEPS
    finally:
        optimizer.zero_grad()
        adapted.unload()


def packed_seconds(base: PreTrainedModel, load: Load, slots: int, device: torch.device) -> tuple[float, str]:
    """(seconds of a step of all slots, the planner's line); leaves the base as it was."""
    examples = [{"completion": TokenSequence(ids, ids)} for ids in token_ids(load, base.config.vocab_size)]
    table = TokenTable(examples, is_encoder_decoder=False)
    pack = Pack(base, linear_targets(base), capacity=slots, max_lora_rank=RANK, budget=PassBudget(1, 1 << 20, 0))
    try:
        budget = free_bytes(device)
        planner = Planner(pack, max_tokens=fit_tokens(pack, load.length, budget_bytes=budget), log=lambda line: None)
        for index in range(slots):
            pack.join(make_spec(index, load), table, terms)
        for _ in range(MOST_STEPS_TO_SETTLE):
            if not planner.describe().endswith("still timing"):
                break
            planner.step()
        seconds = seconds_of(lambda: [planner.step() for _ in range(TIMED_STEPS)], device, warm_up=0) / TIMED_STEPS
        return seconds, planner.describe()
    finally:
        pack.close()


def measured(function: Callable[[], Any], device: torch.device) -> Any:
    """The function's result, or None when the device's memory doesn't hold it."""
    fresh_memory(device)
    try:
        return function()
    except torch.OutOfMemoryError:
        return None


def row_of(shape: str, load: Load, base: PreTrainedModel, device: torch.device, rate: float) -> dict[str, Any]:
    """PEFT alone and every number of slots on one load."""
    tokens, work = load.batch_size * load.length, flop_per_token(base, load.length)
    row: dict[str, Any] = {"shape": shape, "batch_size": load.batch_size, "length": load.length}
    alone = measured(lambda: solo_seconds(base, load, device), device)
    row["solo"] = None if alone is None else figures(alone, tokens, work, rate, device)
    for slots in SLOTS:
        found = measured(lambda slots=slots: packed_seconds(base, load, slots, device), device)
        if found is None:
            row[f"slots_{slots}"] = None
            continue
        seconds, line = found
        row[f"slots_{slots}"] = figures(seconds, slots * tokens, work, rate, device) | {"plan": line}
        if alone is not None:
            row[f"slots_{slots}"]["times_solo"] = round(alone * slots / seconds, 2)
    return row


def figures(seconds: float, tokens: int, work: float, rate: float, device: torch.device) -> dict[str, Any]:
    return {
        "tokens_per_second": round(tokens / seconds),
        "share_of_matmul_rate": round(tokens / seconds * work / rate, 3),
        "peak_gigabytes": peak_gigabytes(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny base, on the CPU where there is no GPU")
    parser.add_argument("--seconds", type=float, default=450.0, help="no row is begun that might not end by then")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a GPU; --smoke runs its code without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start, slowest = time.perf_counter(), 0.0
    rate = matmul_rate(device, 256 if options.smoke else 8192)
    rows: list[dict[str, Any]] = []
    left_out = 0
    for shape in ["tiny"] if options.smoke else ["1b", "8b"]:
        base = make_base(shape, device)
        for load in LOADS[shape]:
            began = time.perf_counter()
            if began - start + slowest + RESERVE_SECONDS > options.seconds:
                left_out += 1
                continue
            rows.append(row_of(shape, load, base, device, rate))
            slowest = max(slowest, time.perf_counter() - began)
            print(json.dumps(rows[-1]), flush=True)
        del base
        fresh_memory(device)
    summary = {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "matmul_teraflops": round(rate / 1e12, 1),
        "seconds": round(time.perf_counter() - start),
        "rows_left_out": left_out,
        "rows": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
