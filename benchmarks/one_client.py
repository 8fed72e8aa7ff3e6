"""One client of the endpoint: its speed against transformers' own, and how long its stream pauses for others' prompts.

    python benchmarks/one_client.py                   all of it on the embedded base, in interleaved rounds of one run
    python benchmarks/one_client.py --base FOLDER     another base
    python benchmarks/one_client.py --engine-only     without HTTP and Ray Serve

Speed: one greedy answer of the base after another, 64 tokens each, by the clock. Sides take turns: transformers'
`generate`, the engine, the endpoint's app behind only uvicorn, and the endpoint as jobs/serve.py starts it, whole and
streamed. Pauses: eight streams over eight adapters while a prompt of 2,000 tokens arrives, in the engine; the longest
time between two tokens of a stream before and after it came, and the long prompt's own first token. Prints tables; the
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import torch
from serve import PROMPT, SAMPLING, World, card, timed_answer
from serve_paths import behind_uvicorn, on_ray_serve

from raytune_llm.data.demo import path as demo_path
from raytune_llm.serving.engine.base import Engine
from raytune_llm.stores.registry import Registry

ANSWER_TOKENS, ANSWERS_A_ROUND = 64, 8
LONG_PROMPT_TOKENS, NUM_STREAMS = 2000, 8


def transformers_side(world: World) -> Callable[[], None]:
    model: Any = world.base.load().eval()
    ids = torch.tensor([world.prompts[0]])

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=ANSWER_TOKENS,
                max_new_tokens=ANSWER_TOKENS,
            )

    return run


def engine_side(world: World, engine: Engine, *, stream: bool) -> Callable[[], None]:
    sampling = replace(SAMPLING, max_tokens=ANSWER_TOKENS, stream=stream)

    def run() -> None:
        _, count = asyncio.run(timed_answer(engine, "base", world.prompts[0], sampling))
        assert count == ANSWER_TOKENS

    return run


def http_side(client: httpx.Client, url: str, model: str, *, stream: bool) -> Callable[[], None]:
    """By one connection that stays open, as clients of a server keep it."""
    body = {"model": model, "prompt": f"{PROMPT} 0.", "max_tokens": ANSWER_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "stream": stream}

    def run() -> None:
        with client.stream("POST", f"{url}/completions", json=body) as response:
            lines = list(response.iter_lines())
        assert response.status_code == 200, lines
        if not stream:
            assert json.loads("".join(lines))["usage"]["completion_tokens"] == ANSWER_TOKENS

    return run


def speeds(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, Any]:
    """Tokens a second of each side, and its share of transformers' in the same round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            begun = time.perf_counter()
            for _ in range(ANSWERS_A_ROUND):
                side()
            if turn:
                seconds[name].append((time.perf_counter() - begun) / ANSWERS_A_ROUND)
    own = seconds["transformers"]
    return {
        name: {
            "tokens_per_second": round(ANSWER_TOKENS / statistics.median(each)),
            "share_of_transformers": round(statistics.median(a / b for a, b in zip(own, each, strict=True)), 3),
        }
        for name, each in seconds.items()
    }


async def pauses(world: World, engine: Engine) -> dict[str, float]:
    """Seconds: the longest between two tokens of a stream before and after a long prompt came, its own first token."""
    before, after, came = [0.0], [0.0], asyncio.Event()
    sampling = replace(SAMPLING, max_tokens=200, stream=True)

    async def stream(number: int) -> None:
        last = None
        async for _ in engine.generate(f"adapter{number}", world.prompts[number], sampling):
            now = time.perf_counter()
            if last is not None:
                (after if came.is_set() else before).append(now - last)
            last = now

    streams = [asyncio.create_task(stream(number)) for number in range(NUM_STREAMS)]
    while len(before) < 20 * NUM_STREAMS:
        await asyncio.sleep(0.005)
    came.set()
    few = replace(sampling, max_tokens=4)
    first, _ = await timed_answer(engine, "base", (world.prompts[8] * LONG_PROMPT_TOKENS)[:LONG_PROMPT_TOKENS], few)
    await asyncio.gather(*streams)
    return {"longest_before": round(max(before), 4), "longest_after": round(max(after), 4), "first": round(first, 3)}


def run(folder: Path, base: Path, *, rounds: int, threads: int, engine_only: bool) -> dict[str, Any]:
    world = World(folder, base)
    torch.set_num_threads(threads)
    engine = world.engine(world.base, max_running=16, with_adapters=True)
    sides = {
        "transformers": transformers_side(world),
        "engine": engine_side(world, engine, stream=False),
        "engine_streamed": engine_side(world, engine, stream=True),
    }
    with contextlib.ExitStack() as running:
        if not engine_only:
            registry = Registry(str(folder / "registry"))
            model = registry.publish("a0", world.folders[0], card(world.base)).reference
            for name, start in (("uvicorn", behind_uvicorn), ("endpoint", on_ray_serve)):
                url = running.enter_context(start(registry.root, [model]))
                client = running.enter_context(httpx.Client(timeout=120))
                sides[name] = http_side(client, url, base.name, stream=False)
                sides[f"{name}_streamed"] = http_side(client, url, base.name, stream=True)
        found = {"speed": speeds(sides, rounds)}
    waited = [asyncio.run(pauses(world, engine)) for _ in range(rounds)]
    found["pause_seconds"] = {key: statistics.median(each[key] for each in waited) for key in waited[0]}
    found["pause_seconds"]["longest_of_all"] = max(each["longest_after"] for each in waited)
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="alternations of the sides")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in this process")
    parser.add_argument("--engine-only", action="store_true", help="without HTTP and Ray Serve")
    parser.add_argument("--base", type=Path, default=demo_path("base"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raytune_llm_", ignore_cleanup_errors=True) as folder:
        sizes = {"rounds": options.rounds, "threads": options.threads, "engine_only": options.engine_only}
        found = run(Path(folder), options.base, **sizes)
    print("| one client | tokens/s | of transformers' |\n|---|---|---|")
    for name, each in found["speed"].items():
        print(f"| {name} | {each['tokens_per_second']} | {each['share_of_transformers']:.2f} |")
    print("\nlongest pause of eight streams, seconds: " + json.dumps(found["pause_seconds"]))
    print(json.dumps({"benchmark": "one_client", "base": options.base.name, "threads": options.threads, **found}))


if __name__ == "__main__":
    main()
