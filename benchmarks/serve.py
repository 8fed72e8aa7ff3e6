"""Many adapters on one base: tokens a second of the local engine against one at a time and against a merged model, and
what HTTP and Ray Serve cost on top of it.

    python benchmarks/serve.py                  all of it, in interleaved rounds of one run; about two minutes
    python benchmarks/serve.py --engine-only    without HTTP and Ray Serve
    python benchmarks/serve.py --base FOLDER    another base than the embedded one

16 requests at once over 8 random adapters of rank 8, 32 tokens each, no early end, greedy.

    adapters        this engine, all adapters in one batch
    merged          the same load on one merged model through the same engine without adapters
    one_at_a_time   this engine, one answer after another
    peft            PEFT: set_adapter and generate, one answer after another
    uvicorn         the endpoint's app behind only uvicorn, in a process of its own
    serve_handle    a replica asked through Ray Serve's router, without HTTP
    serve_http      a replica asked through Ray Serve's proxy, as clients do

Of the first four, which run in this process, CPU seconds are compared round by round (wall seconds are reported too),
so that other processes on the machine disturb little. The others are compared by the clock, and want an idle machine:
(uvicorn - adapters) is HTTP's share, (serve_http - uvicorn) Ray Serve's own. Prints the tables of docs/benchmarks.md;
the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from serve_paths import Ask, all_at_once, behind_uvicorn, by_handle, by_http, on_ray_serve

from raytune_llm.data.demo import path as demo_path
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs import config
from raytune_llm.models.base import Base
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.engine.base import Engine, Sampling, ServedModel
from raytune_llm.stores.card import Card
from raytune_llm.stores.registry import Registry

NUM_ADAPTERS, NUM_REQUESTS, NUM_TOKENS, RANK = 8, 16, 32, 8
SAMPLING = Sampling(
    max_tokens=NUM_TOKENS, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=False
)
PROMPT = "Ana missed the bus and stood in the rain. She wrote: what a day, number"


def write_adapters(base: Base, root: Path) -> list[Path]:
    folders = []
    for seed in range(NUM_ADAPTERS):
        torch.manual_seed(seed)
        settings = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        adapted = get_peft_model(base.load(), settings)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        folder = root / f"adapter{seed}"
        adapted.save_pretrained(str(folder))
        tokenizer = base.tokenizer()
        tokenizer.eos_token = tokenizer.pad_token  # never likely, so that no answer ends early
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders


class World:
    """The base, its adapters, and what each side needs."""

    def __init__(self, root: Path, base: Path) -> None:
        chosen = ["model=demo"] if base == demo_path("base") else ["model=hub", f"model.name_or_path={base}"]
        self.base: Base = config.load("train", [*chosen, "data=demo_sarcasm"]).model
        self.folders = write_adapters(self.base, root)
        merged = root / "merged"
        load_tuned(self.folders[0], self.base).merge_and_unload().save_pretrained(merged)
        self.base.tokenizer().save_pretrained(merged)
        self.merged_base = replace(self.base, name_or_path=str(merged))
        self.tokens = Tokens(self.base.tokenizer(), max_tokens=None, is_encoder_decoder=False)
        self.prompts = [self.tokens.prompt(f"{PROMPT} {i}.") for i in range(NUM_REQUESTS)]

    def engine(self, base: Base, *, max_running: int, with_adapters: bool) -> Engine:
        engine = config.load("serve", ["adapter=any"]).serve.engine.load(base, max_running=max_running)
        engine.add(ServedModel("base", "base", None, self.tokens, ()))
        for i, folder in enumerate(self.folders if with_adapters else []):
            engine.add(ServedModel(f"adapter{i}", "adapter", folder, self.tokens, ()))
        return engine


async def timed_answer(engine: Engine, model: str, prompt: list[int], sampling: Sampling) -> tuple[float, int]:
    """Seconds to the first delta, and the answer's tokens."""
    begun, first, count = time.perf_counter(), 0.0, 0
    async for delta in engine.generate(model, prompt, sampling):
        first = first or time.perf_counter() - begun
        count += delta.num_tokens
    return first, count


async def load_at_once(engine: Engine, world: World, *, adapters: bool, stream: bool) -> list[float]:
    """All requests together; each one's seconds to its first delta."""
    sampling = replace(SAMPLING, stream=stream)
    asked = [
        timed_answer(engine, f"adapter{i % NUM_ADAPTERS}" if adapters else "base", prompt, sampling)
        for i, prompt in enumerate(world.prompts)
    ]
    answers = await asyncio.gather(*asked)
    assert [count for _, count in answers] == [NUM_TOKENS] * NUM_REQUESTS
    return [first for first, _ in answers]


def peft_side(world: World) -> Callable[[], object]:
    """One request after another by PEFT's own switching and transformers' generate."""
    model: Any = PeftModel.from_pretrained(world.base.load(), str(world.folders[0]), adapter_name="adapter0")
    for i, folder in enumerate(world.folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=f"adapter{i}")
    model.eval()

    def run() -> None:
        for i, prompt in enumerate(world.prompts):
            model.set_adapter(f"adapter{i % NUM_ADAPTERS}")
            ids = torch.tensor([prompt])
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=NUM_TOKENS,
                max_new_tokens=NUM_TOKENS,
            )
            assert output.shape[1] == len(prompt) + NUM_TOKENS

    return run


def clocked(function: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        function()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_loop(make: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    return lambda: asyncio.run(make())


def in_process(world: World, engines: dict[str, Engine]) -> dict[str, Callable[[], Any]]:
    """The sides that run here."""
    return {
        "adapters": in_loop(lambda: load_at_once(engines["full"], world, adapters=True, stream=False)),
        "merged": in_loop(lambda: load_at_once(engines["merged"], world, adapters=False, stream=False)),
        "one_at_a_time": in_loop(lambda: load_at_once(engines["single"], world, adapters=True, stream=False)),
        "peft": peft_side(world),
    }


def compare(world: World, paths: dict[str, Ask], rounds: int) -> dict[str, Any]:
    """All sides in turns, the first turn to warm everything up."""
    engines = {
        "full": world.engine(world.base, max_running=NUM_REQUESTS, with_adapters=True),
        "single": world.engine(world.base, max_running=1, with_adapters=True),
        "merged": world.engine(world.merged_base, max_running=NUM_REQUESTS, with_adapters=False),
    }
    sides = in_process(world, engines)
    streamed = {"adapters": in_loop(lambda: load_at_once(engines["full"], world, adapters=True, stream=True))}
    for name, ask in paths.items():
        sides[name] = partial(all_at_once, ask, NUM_REQUESTS, stream=False)
        streamed[name] = partial(all_at_once, ask, NUM_REQUESTS, stream=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    firsts: dict[str, list[float]] = {name: [] for name in streamed}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            seconds = clocked(side)
            if turn:
                found[name].append(seconds)
        for name, side in streamed.items():
            with torch.inference_mode():
                first = side()
            firsts[name] += first if turn else []
    for engine in engines.values():
        engine.close()
    return figures(found, firsts)


def figures(found: dict[str, list[tuple[float, float]]], firsts: dict[str, list[float]]) -> dict[str, Any]:
    count = NUM_REQUESTS * NUM_TOKENS

    def ratio(side: str, clock: int) -> float:
        pairs = zip(found[side], found["adapters"], strict=True)
        return round(statistics.median(other[clock] / own[clock] for other, own in pairs), 3)

    here = ("adapters", "merged", "one_at_a_time", "peft")
    return {
        "tokens_per_cpu_second": {name: round(count / statistics.median(s[0] for s in found[name])) for name in here},
        "tokens_per_second": {n: round(count / statistics.median(s[1] for s in v)) for n, v in found.items()},
        "cpu_ratio_to_adapters": {name: ratio(name, 0) for name in here[1:]},
        "wall_ratio_to_adapters": {name: ratio(name, 1) for name in found if name != "adapters"},
        "first_token_milliseconds": {name: percentiles(seconds) for name, seconds in firsts.items()},
        "rounds": len(found["adapters"]),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    last = min(len(ordered) - 1, int(len(ordered) * 0.99))
    return {"p50": round(1000 * statistics.median(ordered), 1), "p99": round(1000 * ordered[last], 1)}


def tables(found: dict[str, Any]) -> str:
    """What docs/benchmarks.md shows."""
    cpu, wall, speeds = (
        found[name] for name in ("cpu_ratio_to_adapters", "wall_ratio_to_adapters", "tokens_per_second")
    )
    lines = ["| tokens per second against | by CPU seconds | by the clock |", "|---|---|---|"]
    lines += [f"| {name} | {cpu[name]:.2f} | {wall[name]:.2f} |" for name in cpu]
    lines += ["", "| path | tokens/s | time against the engine alone | first token p50 | p99 |", "|---|" + "---|" * 4]
    for name, first in found["first_token_milliseconds"].items():
        lines.append(
            f"| {name} | {speeds[name]} | {wall.get(name, 1.0):.2f} | {first['p50']:.0f} ms | {first['p99']:.0f} ms |"
        )
    return "\n".join(lines)


def card(base: Base) -> Card:
    return Card(
        kind="adapter",
        base=base.name_or_path,
        base_revision=base.facts.revision_hash,
        base_loading=base.loading(),
        method="sft",
        metrics={},
        intervals={},
        config={},
        data={},
        seed=0,
        step=1,
        probes=[],
        code_version="benchmark",
    )


def run(folder: Path, base: Path, *, rounds: int, threads: int, engine_only: bool) -> dict[str, Any]:
    world = World(folder, base)
    torch.set_num_threads(threads)
    if engine_only:
        return compare(world, {}, rounds)
    registry = Registry(str(folder / "registry"))
    models = [registry.publish(f"a{i}", f, card(world.base)).reference for i, f in enumerate(world.folders)]
    texts = [f"{PROMPT} {i}." for i in range(NUM_REQUESTS)]
    with behind_uvicorn(registry.root, models) as plain, on_ray_serve(registry.root, models) as served:
        paths = {
            "uvicorn": by_http(plain, models, texts, NUM_TOKENS),
            "serve_handle": by_handle(models, world.prompts, lambda stream: replace(SAMPLING, stream=stream)),
            "serve_http": by_http(served, models, texts, NUM_TOKENS),
        }
        return compare(world, paths, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="alternations of the sides")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in this process")
    parser.add_argument("--engine-only", action="store_true", help="without HTTP and Ray Serve")
    parser.add_argument("--base", type=Path, default=demo_path("base"))
    options = parser.parse_args()
    print(f"base: {options.base}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="raytune_llm_", ignore_cleanup_errors=True) as folder:
        sizes = {"rounds": options.rounds, "threads": options.threads, "engine_only": options.engine_only}
        found = run(Path(folder), options.base, **sizes)
    print(tables(found))
    about = {
        "benchmark": "serve",
        "base": options.base.name,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "machine": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "requests": NUM_REQUESTS,
        "adapters": NUM_ADAPTERS,
        "rank": RANK,
        "tokens_each": NUM_TOKENS,
    }
    targets = {"cpu_ratio_one_at_a_time": 5.0, "cpu_ratio_merged": 0.6}
    print(json.dumps({**about, **found, "targets": targets}))


if __name__ == "__main__":
    main()
