"""Decoding 64 answers at once over 8, 32 and 64 adapters of a 1 B base, by the local engine in this process, against
the bound of memory bandwidth and against the same load on one model without adapters (as if one were merged). Also 64
adapters on other paths: without fused pointwise parts; then by grouped products of sorted rows; by copies of adapters.

Rank 16, prompts of 448 tokens, greedy. A rate is the difference of two lengths of answers over the difference of their
times, so that reading the prompts doesn't count. Sides take turns; medians.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch
from token_trials import trial

from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs.config import load
from raytune_llm.models.base import Base, linear_targets, skeleton
from raytune_llm.serving.engine.base import Engine, Sampling, ServedModel
from raytune_llm.training.packed.export import export_adapter, peft_config

from .decoding_paths import Path, Paths, compiled_parts, fusing_figures, largest_kernels
from .llama import write_base
from .paper import BANDWIDTH, SHAPES, decode_tokens_per_second
from .served import load_engine
from .step import Step, main

RANK = 16
WAIT_SECONDS = 60.0
PROFILED_STEPS = 20
SAMPLING = Sampling(max_tokens=0, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=False)


def run(step: Step) -> None:
    shape = "tiny" if step.smoke else "1b"
    rows, counts, prompt, short, long = (8, (8,), 20, 2, 6) if step.smoke else (64, (8, 32, 64), 448, 16, 112)
    folder = write_base(step.scratch / shape, shape, step.device)
    base: Base = load(
        "train", ["model=hub", f"model.name_or_path={folder}", "model.dtype=bfloat16", "data.train=-"]
    ).model
    adapters = write_adapters(base, step.scratch / "adapters", max(counts))
    engine, merged = (make_engine(base, folders, rows, step) for folders in (adapters, []))
    prompts = [torch.randint(3, 1000, (prompt,)).tolist() for _ in range(rows)]
    try:
        step.add(**fusing_figures(engine, step.device))
        sides = make_sides(Paths(engine, step.device), Paths(merged, step.device), counts, rows)
        for name, rate in rates(sides, prompts, short, long, rounds=1 if step.smoke else 5).items():
            step.add(**{f"{name}_tokens_per_second": rate})
        step.add(**sides[f"adapters_{max(counts)}"].paths.facts(), compiled_parts_at_end=compiled_parts())
        for name in (f"adapters_{max(counts)}", "merged"):
            step.add(**{f"kernels_{name}": kernels_of(sides[name], prompts, short, step)})
    finally:
        engine.close()
        merged.close()
    bandwidth = step.seen("machine").get("copy_bytes_per_second", BANDWIDTH)
    load_of = {"rows": rows, "lora_rank": RANK, "context": prompt + (short + long) // 2, "bandwidth": bandwidth}
    for count in counts:
        step.add(**{f"adapters_{count}_bound": decode_tokens_per_second(SHAPES[shape], adapters=count, **load_of)})


@dataclass(frozen=True)
class Side:
    """What decodes, and how."""

    paths: Paths
    models: list[str]
    """Of each answer."""
    path: Path

    def decoded(self, prompts: list[list[int]], length: int) -> tuple[int, float]:
        return decoded(self.paths.engine, self.models, prompts, length)


def make_sides(engine: Paths, merged: Paths, counts: tuple[int, ...], rows: int) -> dict[str, Side]:
    """By name. The first ones are as `serve` decodes."""
    sides = {}
    for count in counts:
        sides[f"adapters_{count}"] = Side(engine, [f"adapter{i % count}" for i in range(rows)], Path())
    sides["merged"] = Side(merged, ["base"] * rows, Path())
    name = f"adapters_{max(counts)}"
    for kind, path in (
        ("unfused", Path(fused=False)),
        ("grouped", Path(rows=False, fused=False)),
        ("copied", Path(rows=False, groups=False, fused=False)),
    ):
        sides[f"{name}_{kind}"] = Side(engine, sides[name].models, path)
    sides["merged_unfused"] = Side(merged, ["base"] * rows, Path(fused=False))
    return sides


def kernels_of(side: Side, prompts: list[list[int]], short: int, step: Step) -> list[dict[str, Any]]:
    """Of one step on a side, between two lengths of the same shapes."""
    with side.paths.taken(side.path):
        more = short + (2 if step.smoke else PROFILED_STEPS)
        return largest_kernels(lambda length: side.decoded(prompts, length), short, more, step.device)


def write_adapters(base: Base, folder: Folder, count: int) -> list[Folder]:
    """Folders of one random adapter: each is loaded by itself, and its values make no difference to speed."""
    model = skeleton(base)
    names = linear_targets(model)
    weights = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        a, b = torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK)
        weights[name] = (a * 0.02).bfloat16(), (b * 0.02).bfloat16()
    config = peft_config(trial(0, lora_rank=RANK, batch_size=1), names, is_encoder_decoder=False)
    first = folder / "0"
    export_adapter(first, weights, config, base=base.name_or_path)
    base.tokenizer().save_pretrained(first)
    for index in range(1, count):
        other = folder / str(index)
        other.mkdir()
        for file in first.iterdir():
            os.link(file, other / file.name)
    return [folder / str(index) for index in range(count)]


def make_engine(base: Base, adapters: list[Folder], rows: int, step: Step) -> Engine:
    # all prompts are read in one pass, so that all answers begin together
    engine = load_engine(
        base, step, rows=rows, adapters=max(1, len(adapters)), lora_rank=RANK, fused=False, chunk_tokens=1 << 20
    )
    tokens = Tokens(base.tokenizer(), max_tokens=None, is_encoder_decoder=False)
    engine.add(ServedModel("base", "base", None, tokens, ()))
    for index, folder in enumerate(adapters):
        engine.add(ServedModel(f"adapter{index}", "adapter", folder, tokens, ()))
    return engine


def rates(sides: dict[str, Side], prompts: list[list[int]], short: int, long: int, *, rounds: int) -> dict[str, float]:
    """Tokens a second of each side while all rows decode."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            with side.paths.taken(side.path):
                few, few_seconds = side.decoded(prompts, short)
                many, many_seconds = side.decoded(prompts, long)
            if turn:  # the first turn warms up
                found[name].append((many - few) / (many_seconds - few_seconds))
    return {name: statistics.median(values) for name, values in found.items()}


def decoded(engine: Engine, models: list[str], prompts: list[list[int]], length: int) -> tuple[int, float]:
    """Tokens of all answers, and wall seconds. The engine is held until all have been asked for, so that they join at
    once and every turn has steps of the same shapes."""

    async def answer(model: str, prompt: list[int]) -> int:
        stream = engine.generate(model, prompt, replace(SAMPLING, max_tokens=length))
        return sum([delta.num_tokens async for delta in stream])

    released = threading.Event()
    holder = threading.Thread(target=engine._between_steps, args=(lambda: released.wait(WAIT_SECONDS),))
    started = 0.0

    async def together() -> int:
        nonlocal started
        answers = [asyncio.ensure_future(answer(*each)) for each in zip(models, prompts, strict=True)]
        while engine.num_waiting < len(answers):
            await asyncio.sleep(0.001)
        started = time.perf_counter()
        released.set()
        return sum(await asyncio.gather(*answers))

    holder.start()
    tokens = asyncio.run(together())
    seconds = time.perf_counter() - started
    holder.join()
    return tokens, seconds


if __name__ == "__main__":
    main(run)
