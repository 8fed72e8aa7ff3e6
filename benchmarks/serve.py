"""Many adapters on one base: tokens a second of the local engine against one at a time, and against a merged model.

    python benchmarks/serve.py            engine alone, interleaved rounds in one process; about a minute
    python benchmarks/serve.py --http     also through Ray Serve and HTTP, to see what they cost

16 requests at once over 8 random adapters of rank 8 on the embedded base, 32 tokens each, no early end, greedy.

    adapters        this engine, all adapters in one batch
    merged          the same load on one merged model through the same engine without adapters
    one_at_a_time   this engine, one answer after another
    peft            PEFT: set_adapter and generate, one answer after another

CPU seconds of the process are compared round by round (wall seconds reported beside), so that other processes on the
machine disturb little. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from raytune_llm import config
from raytune_llm.data.tokens import Tokens
from raytune_llm.demo import path as demo_path
from raytune_llm.job import Card
from raytune_llm.models.adapter import load_tuned
from raytune_llm.models.base import Base
from raytune_llm.registry import Registry
from raytune_llm.serving.engine import Engine, Sampling, ServedModel

NUM_ADAPTERS, NUM_REQUESTS, NUM_TOKENS, RANK = 8, 16, 32, 8
SAMPLING = Sampling(
    max_tokens=NUM_TOKENS, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=False
)
PROMPT = "Ana missed the bus and stood in the rain. She said: what a day, number"


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
        base.tokenizer().save_pretrained(folder)
        folders.append(folder)
    return folders


class World:
    """The base, its adapters, and what each side needs."""

    def __init__(self, root: Path) -> None:
        self.base: Base = config.load("train", ["model=demo", "data=demo_sarcasm"]).model
        self.folders = write_adapters(self.base, root)
        merged = root / "merged"
        load_tuned(self.folders[0], self.base).merge_and_unload().save_pretrained(merged)
        self.base.tokenizer().save_pretrained(merged)
        self.merged_base = dataclasses.replace(self.base, name_or_path=str(merged))
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
    sampling = dataclasses.replace(SAMPLING, stream=stream)
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


def engine_alone(world: World, rounds: int) -> dict[str, Any]:
    full = world.engine(world.base, max_running=NUM_REQUESTS, with_adapters=True)
    single = world.engine(world.base, max_running=1, with_adapters=True)
    merged = world.engine(world.merged_base, max_running=NUM_REQUESTS, with_adapters=False)
    sides: dict[str, Callable[[], Any]] = {
        "adapters": in_loop(lambda: load_at_once(full, world, adapters=True, stream=False)),
        "merged": in_loop(lambda: load_at_once(merged, world, adapters=False, stream=False)),
        "one_at_a_time": in_loop(lambda: load_at_once(single, world, adapters=True, stream=False)),
        "peft": peft_side(world),
    }
    firsts: list[float] = []
    streamed = in_loop(lambda: load_at_once(full, world, adapters=True, stream=True))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    found["streamed"] = []
    for turn in range(rounds + 1):
        for name, side in sides.items():
            seconds = clocked(side)
            if turn:  # the first round warms everything up
                found[name].append(seconds)
        seconds = clocked(lambda: firsts.extend(streamed()))
        if turn:
            found["streamed"].append(seconds)
        else:
            firsts.clear()
    for engine in (full, single, merged):
        engine.close()
    return figures(found, sorted(firsts))


def figures(found: dict[str, list[tuple[float, float]]], firsts: list[float]) -> dict[str, Any]:
    count = NUM_REQUESTS * NUM_TOKENS

    def ratio(side: str, clock: int) -> float:
        pairs = zip(found[side], found["adapters"], strict=True)
        return round(statistics.median(other[clock] / own[clock] for other, own in pairs), 3)

    return {
        "tokens_per_cpu_second": {n: round(count / statistics.median(s[0] for s in v)) for n, v in found.items()},
        "tokens_per_second": {n: round(count / statistics.median(s[1] for s in v)) for n, v in found.items()},
        "ratio_to_one_at_a_time": ratio("one_at_a_time", 0),
        "ratio_to_peft": ratio("peft", 0),
        "ratio_to_merged": ratio("merged", 0),
        "ratio_wall_to_one_at_a_time": ratio("one_at_a_time", 1),
        "ratio_wall_to_peft": ratio("peft", 1),
        "ratio_wall_to_merged": ratio("merged", 1),
        "first_token_seconds_p50": round(statistics.median(firsts), 4),
        "first_token_seconds_p99": round(firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))], 4),
    }


def through_http(world: World, root: Path, rounds: int) -> dict[str, Any]:
    """The same load by Ray Serve: tokens a second, and seconds to the first token of a stream."""
    import ray

    from raytune_llm import cluster
    from raytune_llm.serving import deploy

    registry = Registry(str(root / "registry"))
    references = [registry.publish(f"a{i}", f, card(world.base)).reference for i, f in enumerate(world.folders)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster.set_environment()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
    serve = config.load("serve", ["adapter=any", f"serve.port={port}"]).serve
    endpoint = deploy.start(serve, registry.root, references)
    walls, firsts = [], []
    for turn in range(rounds + 1):
        begun = time.perf_counter()
        asyncio.run(ask_all(endpoint.url, references, stream=False))
        wall = time.perf_counter() - begun
        first = asyncio.run(ask_all(endpoint.url, references, stream=True))
        if turn:
            walls.append(wall)
            firsts += first
    deploy.stop()
    ray.shutdown()
    firsts.sort()
    return {
        "http_tokens_per_second": round(NUM_REQUESTS * NUM_TOKENS / statistics.median(walls)),
        "http_first_token_seconds_p50": round(statistics.median(firsts), 4),
        "http_first_token_seconds_p99": round(firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))], 4),
    }


async def ask_all(url: str, references: list[str], *, stream: bool) -> list[float]:
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask(i: int) -> float:
            begun = time.perf_counter()
            body = {"prompt": f"{PROMPT} {i}.", "max_tokens": NUM_TOKENS, "temperature": 0, "stream": stream}
            answer: Any = await client.completions.create(model=references[i % NUM_ADAPTERS], **body)
            first = time.perf_counter() - begun
            if stream:
                events: AsyncIterator[Any] = aiter(answer)
                await anext(events)
                first = time.perf_counter() - begun
                async for _ in events:
                    pass
            return first

        return await asyncio.gather(*map(ask, range(NUM_REQUESTS)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="alternations of the sides")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--http", action="store_true", help="also through Ray Serve")
    options = parser.parse_args()
    print(f"base: {demo_path('base')}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="raytune_llm_", ignore_cleanup_errors=True) as folder:
        world = World(Path(folder))
        torch.set_num_threads(options.threads)
        found = engine_alone(world, options.rounds)
        found |= through_http(world, Path(folder), max(3, options.rounds // 3)) if options.http else {}
    found = {
        "benchmark": "serve",
        "machine": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "requests": NUM_REQUESTS,
        "adapters": NUM_ADAPTERS,
        "rank": RANK,
        "tokens_each": NUM_TOKENS,
        **found,
        "targets": {"ratio_to_one_at_a_time": 5.0, "ratio_to_merged": 0.6},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
