"""What policies write, how often it is preferred, and how far they went from their base for that.

    python benchmarks/preference_rate.py HOME VERSION…
        the demo: preferred by the rule of the generator of its world, not by a reward model
    python benchmarks/preference_rate.py HOME VERSION… --base FOLDER --data RECORDS.jsonl --judge NAME@version
        any base: preferred to the base's own reply by a reward model, best of one that had no say in the training

One reply is sampled for each prompt, at temperature 1 unless --temperature says otherwise (equal prompts of the demo
only once), and one is greedy; some are shown. Divergence is exact at every position that was visited, nats. Intervals:
95 %, 1,000 bootstrap draws over prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raytune_llm.data import demo
from raytune_llm.data.demo.world import prefers
from raytune_llm.data.examples import Rollout
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.evaluation.compare import compare, number
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.metrics import Metric, mean, ratio
from raytune_llm.evaluation.policy import PolicyPrompt, Sampling, divergence, roll_out, win_rate
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import config
from raytune_llm.methods.common.reward_scorer import RewardScorer
from raytune_llm.models.loading import load_model, load_tuned
from raytune_llm.stores.registry import Registry

LONGEST_TOKENS = 48
MOST_PROMPTS = 128
SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--base", help="a folder; without it, the demo")
    parser.add_argument("--data", help="records with input_text")
    parser.add_argument("--judge", help="a reward model of the registry")
    parser.add_argument("--temperature", type=float, default=1.0)
    arguments = parser.parse_args()
    rows = demo_records() if arguments.base is None else Path(arguments.data).read_text().splitlines()[:MOST_PROMPTS]
    given = [json.loads(row)["input_text"] for row in rows]
    prompts = list(dict.fromkeys(given)) if arguments.base is None else given
    overrides = ["model=demo", "data=demo_preference"]
    if arguments.base is not None:
        overrides = ["model=hub", f"model.name_or_path={arguments.base}", f"data.train={arguments.data}"]
    base = config.load("check", overrides).model
    registry = Registry(f"{arguments.home}/registry")
    judge = None if arguments.judge is None else scorer(base, registry.resolve(arguments.judge).path)
    folders = {"base": None} | {name: registry.resolve(name).path for name in arguments.versions}
    show(compare(measured(base, folders, prompts, judge, arguments.temperature), num_draws=1000, seed=0))
    print(f"{len(prompts)} prompts")


def demo_records() -> list[str]:
    return (Path(demo.__file__).parent / "data/preference/test.jsonl").read_text().splitlines()


def scorer(base: Any, folder: str) -> RewardScorer:
    """A reward model of the base."""
    tokenizer = base.tokenizer()
    model = load_tuned(folder, base, score=True)
    return RewardScorer(model, eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, batch_size=32)


def measured(
    base: Any, folders: dict[str, str | None], prompts: Sequence[str], judge: RewardScorer | None, temperature: float
) -> dict[str, dict[str, Metric]]:
    """The metrics of each policy; the base is the first."""
    tokenizer = base.tokenizer()
    tokens = Tokens(tokenizer, max_tokens=256, is_encoder_decoder=False)
    questions = [PolicyPrompt(tokens.prompt(prompt), prompt, "") for prompt in prompts]
    sampling = Sampling(LONGEST_TOKENS, temperature, tuple(tokens.stop_ids()), tokenizer.pad_token_id, 64, seed=0)
    reference = load_model(base, None, use_gpu=False)
    own = roll_out(reference, questions, sampling, partial(tokenizer.decode, skip_special_tokens=True))
    preferred = by_rule if judge is None else partial(by_judge, judge, np.array(judge(own)))
    found = {}
    for name, folder in folders.items():
        model = load_model(base, folder, use_gpu=False)
        rollouts = roll_out(model, questions, sampling, partial(tokenizer.decode, skip_special_tokens=True))
        found[name] = policy(name, model, reference, rollouts, sampling, tokenizer, preferred)
    return found


def policy(
    name: str,
    model: Any,
    reference: Any,
    rollouts: list[Rollout],
    sampling: Sampling,
    tokenizer: Any,
    preferred: Callable[[list[Rollout]], Sequence[float]],
) -> dict[str, Metric]:
    greedy = generate(
        model,
        tokenizer,
        [one.prompt_ids for one in rollouts],
        max_new_tokens=LONGEST_TOKENS,
        stop_ids=sampling.stop_ids,
        batch_size=64,
    )
    firm = [dataclasses.replace(r, completion=text) for r, text in zip(rollouts, greedy, strict=True)]
    kl, _ = divergence(model, partial(nullcontext, reference), rollouts, sampling)
    sizes = np.array([len(r.completion_ids) for r in rollouts], dtype=np.float64)
    print(f"{name}, greedy: {greedy[0]!r}")
    for rollout in rollouts[:SHOWN]:
        print(f"{name}, sampled: {rollout.completion.strip()!r}")
    found = {
        "preferred": mean(preferred(rollouts), Better.higher),
        "KL per completion": mean(kl, Better.lower),
        "KL per token": ratio(kl, sizes, Better.lower),
        "tokens": mean(sizes, Better.neither),
        "ended": mean([float(r.ended) for r in rollouts], Better.higher),
    }
    return found | ({"preferred, greedy": mean(by_rule(firm), Better.higher)} if preferred is by_rule else {})


def by_rule(rollouts: Sequence[Rollout]) -> list[float]:
    return [float(prefers(r.prompt, r.completion)) for r in rollouts]


def by_judge(judge: RewardScorer, own: np.ndarray, rollouts: list[Rollout]) -> list[float]:
    """Against the base's own replies, whose scores are `own`."""
    wins: list[float] = win_rate(np.array(judge(rollouts)), own).tolist()
    return wins


def show(comparison: Any) -> None:
    for metric, systems in comparison.metrics.items():
        for name, estimate in systems.items():
            spread = f"[{number(estimate.low)}, {number(estimate.high)}]"
            print(f"{metric:20} {name:16} {number(estimate.value)} {spread}")


if __name__ == "__main__":
    main()
