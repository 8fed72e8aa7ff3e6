"""One step of sixteen packed trials against sixteen steps of PEFT alone, bf16, at one shape and several loads.

PEFT alone is the barest loop under bf16 autocast, as TRL would run it: full logits, fused AdamW, clip_grad_norm_. Rank
16; every token is a label. The planner chooses the passes where its measurements end in time; else all slots share
them. `share` is the model's arithmetic (paper.py) over the time, as a part of the measured matmul rate; `busy` the part
of the time in which the GPU runs kernels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from token_trials import terms, trial
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from raytune_llm.models.base import linear_targets
from raytune_llm.models.memory import free_bytes
from raytune_llm.models.out_of_memory import is_out_of_memory
from raytune_llm.models.pointwise import CompileError
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import peft_config
from raytune_llm.training.packed.memory import fit_tokens
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner
from raytune_llm.training.packed.trials import MEMORY_SHARE, compiles_by_itself

from .llama import make_base, make_config, random_examples
from .paper import MATMUL_RATE, SHAPES, flop_per_token
from .step import Step, main
from .timing import busy_seconds, fresh_memory, median_seconds, peak_gigabytes, seconds_of

RANK, SLOTS = 16, 16
LOADS = ((8, 128), (1, 128), (1, 512), (1, 2048))
"""(batch size, tokens), in order of interest."""
SMOKE_LOADS = ((8, 16), (1, 16))
COMPARED_LOAD = LOADS[0]
"""Where compiled and eager packs are compared."""
TIMED_SECONDS = {"cuda": 2.5, "cpu": 0.3}
PLANNING_SECONDS = {"cuda": 10.0, "cpu": 1.0}
"""By kind of device; on a CPU figures mean nothing."""
MEASURING = "still measuring"
"""How the planner's line ends before its first choice."""


def run(step: Step) -> None:
    shape = "tiny" if step.smoke else step.argument
    base = make_base(make_config(shape, use_cache=False), step.device)
    rate = step.seen("machine").get("matmul_flops", MATMUL_RATE)
    for name, load in zip(LOADS, SMOKE_LOADS if step.smoke else LOADS, strict=not step.smoke):
        work = SLOTS * load[0] * load[1] * flop_per_token(SHAPES[shape], load[1], RANK)
        figures: dict[str, Any] = {"batch_size": load[0], "length": load[1]}
        figures["solo_seconds"] = held(lambda load=load: solo_seconds(base, load, step.device), step.device)
        figures |= held(lambda load=load: packed_figures(base, load, step.device), step.device) or {}
        if "packed_seconds" in figures:
            figures["share"] = work / rate / figures["packed_seconds"]
        step.add(load="×".join(map(str, name)), **figures)
    load = SMOKE_LOADS[0] if step.smoke else COMPARED_LOAD
    for name, compiled in (("eager", False), ("compiled", True)):
        found = held(lambda compiled=compiled: packed_figures(base, load, step.device, compiled), step.device)
        step.add(**{name: found})


def held(function: Any, device: torch.device) -> Any:
    """The function's result, or None when the device's memory doesn't hold it."""
    fresh_memory(device)
    try:
        return function()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def solo_seconds(base: PreTrainedModel, load: tuple[int, int], device: torch.device) -> float:
    """Seconds of one step of PEFT alone; leaves the base as it was."""
    batch_size, length = load
    spec = trial(0, lora_rank=RANK, batch_size=batch_size)
    adapted = get_peft_model(base, peft_config(spec, linear_targets(base), is_encoder_decoder=False)).train()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(3, base.config.vocab_size, (batch_size, length), device=device)
    mask = torch.ones_like(ids)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = adapted(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        return median_seconds(step, device, warm_up=2, at_most=TIMED_SECONDS[device.type])
    finally:
        optimizer.zero_grad()
        adapted.unload()


@contextmanager
def packed(
    base: PreTrainedModel, load: tuple[int, int], device: torch.device, compiled: bool | None = None
) -> Iterator[tuple[Pack, bool]]:
    """A pack of all slots, one pass for what memory holds, and whether it is compiled: as wanted, None = as sweeps
    do it. Leaves the base as it was."""
    batch_size, length = load
    examples = random_examples(64, shortest=length, longest=length, vocabulary=base.config.vocab_size)
    table = TokenTable(examples, is_encoder_decoder=False)
    free = free_bytes(device)
    pack, compiled = make_pack(base, compiles_by_itself(device) if compiled is None else compiled)
    try:
        tokens = fit_tokens(pack, length, budget_bytes=int(free * MEMORY_SHARE))
        pack.budget = PassBudget(SLOTS, tokens, 128)
        for index in range(SLOTS):
            # one seed: initial weights of another take seconds to draw
            pack.join(trial(index, lora_rank=RANK, batch_size=batch_size, seed=0), table, terms)
        yield pack, compiled
    finally:
        pack.close()


def make_pack(base: PreTrainedModel, compiled: bool) -> tuple[Pack, bool]:
    """Also whether it is compiled, which fails where PyTorch finds no compiler, say."""
    sizes = {"capacity": SLOTS, "max_lora_rank": RANK, "budget": PassBudget(SLOTS, 1 << 20, 128)}
    try:
        return Pack(base, linear_targets(base), **sizes, compiled=compiled), compiled
    except CompileError as error:
        print(f"not compiled: {error}", flush=True)
        return Pack(base, linear_targets(base), **sizes), False


def packed_figures(
    base: PreTrainedModel, load: tuple[int, int], device: torch.device, compiled: bool | None = None
) -> dict[str, Any]:
    """Seconds of one step of all slots, as the planner chooses where there is time for it."""
    with packed(base, load, device, compiled) as (pack, is_compiled):
        first = seconds_of(pack.step, device)
        seconds = median_seconds(pack.step, device, warm_up=1, at_most=TIMED_SECONDS[device.type])
        found = {"together_seconds": seconds, "first_seconds": first, "passes": pack.num_passes}
        found |= {"padded_tokens": pack.padded_tokens, "is_compiled": is_compiled}
        together = pack.budget
        planner = Planner(pack, max_tokens=together.max_tokens, log=lambda line: None)
        if settled(planner, seconds, PLANNING_SECONDS[device.type]):
            seconds = median_seconds(planner.step, device, warm_up=0, at_most=TIMED_SECONDS[device.type])
        else:
            pack.budget = together
        busy = busy_seconds(pack.step, device)
        peak = {"peak_gigabytes": peak_gigabytes(device), "checkpointing": pack.checkpointing}
        share = {"busy": None if busy is None else min(1.0, busy / seconds)}
        return found | {"packed_seconds": seconds, "plan": planner.describe()} | share | peak


def settled(planner: Planner, step_seconds: float, at_most: float) -> bool:
    """Whether the planner has made its choice, after at most so many seconds."""
    if 8 * step_seconds > at_most:
        return False
    end = time.perf_counter() + at_most
    while planner.describe().endswith(MEASURING) and time.perf_counter() < end:
        planner.step()
    return not planner.describe().endswith(MEASURING)


if __name__ == "__main__":
    main(run)
