"""How often a policy's replies are what the demo's world truly prefers, by the generator's own rule and not by a reward
model; and how far it went for that.

    python benchmarks/preference_rate.py HOME VERSION…

One reply is sampled at temperature 1 for each test prompt, and one is greedy. Divergence is exact at every position
that was visited, nats. Intervals: 95 %, 1,000 bootstrap draws over prompts.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from raytune_llm.data import demo
from raytune_llm.data.demo.world import prefers
from raytune_llm.data.tokens import Tokens
from raytune_llm.evaluation.compare import compare, number
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.metrics import mean, ratio
from raytune_llm.evaluation.policy import PolicyPrompt, Sampling, divergence, roll_out
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import config
from raytune_llm.models.loading import load_model
from raytune_llm.stores.registry import Registry

LONGEST_TOKENS = 48


def main(home: str, references: list[str]) -> None:
    base = config.load("check", ["model=demo", "data=demo_preference"]).model
    tokenizer = base.tokenizer()
    tokens = Tokens(tokenizer, max_tokens=256, is_encoder_decoder=False)
    rows = (Path(demo.__file__).parent / "data/preference/test.jsonl").read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(row)["input_text"] for row in rows))
    questions = [PolicyPrompt(tokens.prompt(prompt), prompt, "") for prompt in prompts]
    sampling = Sampling(LONGEST_TOKENS, 1.0, tuple(tokens.stop_ids()), tokenizer.pad_token_id, 64, seed=0)
    reference = load_model(base, None, use_gpu=False)
    folders = {"base": None} | {name: Registry(f"{home}/registry").resolve(name).path for name in references}
    found = {}
    for name, folder in folders.items():
        model = load_model(base, folder, use_gpu=False)
        rollouts = roll_out(model, questions, sampling, partial(tokenizer.decode, skip_special_tokens=True))
        greedy = generate(
            model,
            tokenizer,
            [one.prompt_ids for one in questions],
            max_new_tokens=LONGEST_TOKENS,
            stop_ids=sampling.stop_ids,
            batch_size=64,
        )
        kl, _ = divergence(model, partial(nullcontext, reference), rollouts, sampling)
        sizes = np.array([len(r.completion_ids) for r in rollouts], dtype=np.float64)
        found[name] = {
            "preferred, sampled": mean([float(prefers(r.prompt, r.completion)) for r in rollouts], Better.higher),
            "preferred, greedy": mean(
                [float(prefers(p, text)) for p, text in zip(prompts, greedy, strict=True)], Better.higher
            ),
            "KL per completion": mean(kl, Better.lower),
            "KL per token": ratio(kl, sizes, Better.lower),
        }
        for rollout in rollouts[:3]:
            print(f"  {name}: {rollout.completion.strip()!r}")
    comparison = compare(found, num_draws=1000, seed=0)
    for metric, systems in comparison.metrics.items():
        for name, estimate in systems.items():
            spread = f"[{number(estimate.low)}, {number(estimate.high)}]"
            print(f"{metric:20} {name:16} {number(estimate.value)} {spread}")
    print(f"{len(questions)} prompts")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
