"""The whole journey on a real base: check, sweep, compare, serve, ask. `make real` runs it on SmolLM2-135M-Instruct.

    python benchmarks/real_journey.py FOLDER_OR_HUB_ID [key=value …]

The records are booking chats of the public data that RAYTUNE_LLM_PUBLIC_DATA names, else the embedded sarcasm; the
overrides are those of a sweep. Ends with the answers of base and tuned model, streamed by the openai client, next to
the reference, and with what each part took: minutes of two cores in all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai

from raytune_llm import compose
from raytune_llm.data.question import plain
from raytune_llm.data.records import Text
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import fail
from raytune_llm.jobs.deploy import deploy, take_down
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.sweep import run_sweep
from raytune_llm.serving.catalog import Endpoint
from raytune_llm.sweep.tables import text_table

SWEEP = [
    "home=outputs/real",
    "name=real",
    "tuning.eval_every=16",
    "sweep.scheduler.grace_steps=16",
    "sweep.space.tuning.steps=[48]",
    "sweep.space.tuning.learning_rate_multiplier=[1.0,3.0]",
    "sweep.space.tuning.adapter_size=[4,16]",
    "evaluation.max_examples=64",
]
"""Four trials of at most 48 steps, each looked at every 16."""
NUM_QUESTIONS, MAX_TOKENS = 3, 64


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    model, *overrides = sys.argv[1:]
    data, of_sweep = records()
    try:
        seconds = journey([f"model.name_or_path={model}", *data], [*SWEEP, *of_sweep, *overrides])
    except InputError as error:
        fail(str(error))
    rows = [*seconds.items(), ("in all", sum(seconds.values()))]
    print("\n" + text_table(["part", "seconds"], [[part, f"{took:.0f}"] for part, took in rows]))


def records() -> tuple[list[str], list[str]]:
    """The overrides that name the records, and those of a sweep on them."""
    public = os.environ.get("RAYTUNE_LLM_PUBLIC_DATA")
    if public is None:
        return ["data=demo_sarcasm", "data.test=null"], []
    folder = f"{public}/data/sgd_chat"
    return [f"data.train={folder}/train.jsonl", "data.eval_size=64", "data.max_tokens=384"], ["tuning.batch_size=4"]


def journey(given: Sequence[str], of_sweep: Sequence[str]) -> dict[str, float]:
    """The journey with the overrides of all commands, and those of a sweep; returns the seconds of each part. Raises
    InputError."""
    times = [time.time()]
    prepared = prepare(compose("check", given).job)
    print(prepared.diagnosis.text(), flush=True)
    times.append(time.time())
    job = compose("sweep", [*given, *of_sweep]).job
    published = run_sweep(job)
    times += [
        Path(job.run_dir, "leaderboard.csv").stat().st_mtime,
        time.time(),
    ]  # written between training and comparison
    endpoint = deploy(job, [published.version.reference])
    times.append(time.time())
    try:
        for prompt, reference in filter(None, map(job.method.question, prepared.splits.eval[:NUM_QUESTIONS])):
            ask(endpoint, prompt, reference)
        times.append(time.time())
    finally:
        take_down()
    parts = ("check", "sweep", "compare and publish", "serve, after the parity check", "ask")
    return {part: after - before for part, before, after in zip(parts, times, times[1:], strict=False)}


def ask(endpoint: Endpoint, prompt: Text, reference: str) -> None:
    """Print a prompt, the greedy answer of each model as it comes, and the reference."""
    names = [entry.names[0] for entry in endpoint.catalog.entries]
    width = max(map(len, ["expected", *names]))
    print(f"\n{plain(prompt)}")
    for name in names:
        print(f"  {name.ljust(width)}  ", end="", flush=True)
        for text in answer(endpoint, name, prompt):
            print(text.replace("\n", " "), end="", flush=True)
        print()
    print(f"  {'expected'.ljust(width)}  {reference}", flush=True)


def answer(endpoint: Endpoint, model: str, prompt: Text) -> Iterator[str]:
    """The parts of a greedy answer: of the chat endpoint to a conversation, of the completions endpoint to a text."""
    client = openai.OpenAI(base_url=endpoint.url, api_key=endpoint.api_key or "none")
    options: dict[str, Any] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    if isinstance(prompt, str):
        for chunk in client.completions.create(prompt=prompt, **options):
            yield from (choice.text for choice in chunk.choices)
    else:
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt]
        for chunk in client.chat.completions.create(messages=messages, **options):
            yield from (choice.delta.content or "" for choice in chunk.choices)


if __name__ == "__main__":
    main()
