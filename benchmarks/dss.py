"""Distilling step-by-step against its baselines: accuracy by how many of the demo rationales are known.

    python benchmarks/dss.py                  the whole grid, half an hour of one core; resumes where it was stopped
    python benchmarks/dss.py --only 0 0.1     one seed and one share of the records
    python benchmarks/dss.py --report         the table and docs/dss.svg from what has been run (docs/dss.jsonl)

Frozen before the first run: the committed demo rationales (500 train, 80 eval, 140 test), the shares, three seeds, one
setting for every arm (rank 16, rate 3e-3, 16 records a step, 800 steps), and the metric: greedy answers on the test
split, exactly the label (in the single-task arm: the text after its mark), of the weights at the step whose eval
accuracy was best, looked at every 100 steps, the earliest of equals. A seed draws its share of the records, the
adapter and the order. Intervals resample seeds and pairs of people: both orders of a pair stay together.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ARMS = {
    "dss": ["method.alpha=0.5"],
    "finetuning": ["method.alpha=1"],
    "single-task": [
        "method.alpha=1",
        "method.label_target='{rationale} The answer is {label}'",
        "evaluation.answer_after='The answer is '",
    ],
    "no rationale": ["method.alpha=0.5", "method.rationale_target='{label}'"],
}
SHARES = (0.1, 0.25, 0.5, 1.0)
SEEDS = (0, 1, 2)
STEPS, EVAL_EVERY, RANK, RATE, BATCH_SIZE, MAX_NEW_TOKENS = 800, 100, 16, 3e-3, 16, 40
NUM_DRAWS = 10_000
COLOURS = {"dss": "#1b7837", "finetuning": "#b2182b", "single-task": "#2166ac", "no rationale": "#888888"}


def run(seed: int, share: float) -> list[dict[str, Any]]:
    """All arms of one seed and share, as slots of one pack; a row an arm."""
    from raytune_llm.models.base import linear_targets
    from raytune_llm.training.packed.batches import TokenTable
    from raytune_llm.training.packed.pack import Pack
    from raytune_llm.training.packed.planner import Planner

    started = time.process_time()
    arms = {name: Arm(name, overrides, seed, share) for name, overrides in ARMS.items()}
    model = arms["dss"].job.model.load()
    pack = Pack(model, linear_targets(model), capacity=len(arms), max_lora_rank=RANK, budget=_budget())
    for arm in arms.values():
        pack.join(arm.spec(), TokenTable(arm.examples["train"], is_encoder_decoder=False), arm.job.method.terms)
    evals = {name: TokenTable(arm.examples["eval"], is_encoder_decoder=False) for name, arm in arms.items()}
    planner = Planner(pack, max_tokens=1 << 14, log=lambda line: None)
    for step in range(1, STEPS + 1):
        planner.step()
        if step % EVAL_EVERY == 0:
            for name, arm in arms.items():
                accuracy = pack.evaluate(evals[name], [name])[name].metrics()["eval/accuracy"]
                arm.note(step, accuracy, pack.weights(name))
    names = pack.names
    pack.close()
    rows = [arm.row(names) for arm in arms.values()]
    return [row | {"pack_cpu_seconds": time.process_time() - started} for row in rows]


class Arm:
    """One way to learn from a share of the records."""

    def __init__(self, name: str, overrides: list[str], seed: int, share: float) -> None:
        from raytune_llm.data.examples import IGNORED, TokenSequence
        from raytune_llm.jobs import config
        from raytune_llm.jobs.prepare import prepare

        self.name, self.seed, self.share = name, seed, share
        self.job = config.load("train", ["method=dss", "model=demo", "data=demo_rationale", *overrides])
        self.prepared = prepare(self.job)
        train, evaluation = self.prepared.examples.train, self.prepared.examples.eval
        drawn = random.Random(f"{seed}:{share}").sample(train, round(share * len(train)))
        if self.job.method.alpha == 1:  # the other task then changes nothing, so its place is left empty to save time
            nothing = TokenSequence(drawn[0]["label"].input_ids[:1], [IGNORED])
            drawn = [example | {"rationale": nothing} for example in drawn]
        self.examples = {"train": drawn, "eval": evaluation}
        self.best = (-1.0, 0, None)
        self.curve: list[float] = []

    def spec(self) -> Any:
        from raytune_llm.training.config import Schedule
        from raytune_llm.training.packed.hyperparameters import Hyperparameters

        return Hyperparameters(
            trial_id=self.name,
            lora_rank=RANK,
            alpha=self.job.adapter.alpha,
            rslora=False,
            dropout=0.0,
            learning_rate=RATE,
            schedule=Schedule.constant,
            warmup_steps=10,
            num_steps=None,
            weight_decay=0.0,
            max_grad_norm=1.0,
            batch_size=BATCH_SIZE,
            micro_batch_size=None,
            seed=self.seed,
        )

    def note(self, step: int, accuracy: float, weights: Any) -> None:
        self.curve.append(round(accuracy, 4))
        if accuracy > self.best[0]:
            self.best = (accuracy, step, weights)

    def row(self, names: list[str]) -> dict[str, Any]:
        """What came of it; `right` says of each test record whether its greedy answer is the label, 1 or 0."""
        from raytune_llm.evaluation.generate import generate
        from raytune_llm.evaluation.metrics import after, exact_match
        from raytune_llm.models.loading import load_tuned
        from raytune_llm.training.packed.export import export_adapter, peft_config

        tokens, records = self.prepared.tokens, self.prepared.splits.test
        with tempfile.TemporaryDirectory() as folder:
            described = peft_config(self.spec(), names, is_encoder_decoder=False)
            export_adapter(folder, self.best[2], described, base=self.job.model.name_or_path)
            model = load_tuned(folder, self.job.model)
        questions = [self.job.method.question(record) for record in records]
        completions = generate(
            model,
            tokens.tokenizer,
            [tokens.prompt(prompt) for prompt, _ in questions],
            max_new_tokens=MAX_NEW_TOKENS,
            stop_ids=tokens.stop_ids(),
            batch_size=70,
        )
        answers = [after(text, self.job.evaluation.answer_after) for text in completions]
        right = exact_match([reference for _, reference in questions], answers)
        return {
            "arm": self.name,
            "seed": self.seed,
            "share": self.share,
            "records": len(self.examples["train"]),
            "step": self.best[1],
            "eval_accuracy": self.best[0],
            "curve": self.curve,
            "test_accuracy": float(right.mean()),
            "right": "".join(str(int(one)) for one in right),
        }


def _budget() -> Any:
    from raytune_llm.training.packed.batches import PassBudget

    return PassBudget(slots_per_pass=1, max_tokens=1 << 14, overhead_tokens=128)


def interval(cells: list[list[dict[str, Any]]]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the accuracy of one cell (its rows, a seed each), or of the difference of two cells."""
    right = [
        np.array([list(row["right"]) for row in sorted(rows, key=lambda row: row["seed"])], float) for rows in cells
    ]
    values = right[0] - right[1] if len(right) == 2 else right[0]
    pairs = tested_pairs()
    names = sorted(set(pairs))
    by_pair = np.stack([values[:, [i for i, pair in enumerate(pairs) if pair == name]].mean(1) for name in names], 1)
    draws = np.random.default_rng(0)
    seeds = draws.integers(len(by_pair), size=(NUM_DRAWS, len(by_pair)))
    pairs = draws.integers(len(names), size=(NUM_DRAWS, len(names)))
    means = [by_pair[np.ix_(chosen, some)].mean() for chosen, some in zip(seeds, pairs, strict=True)]
    return float(values.mean()), *(float(q) for q in np.quantile(means, (0.025, 0.975)))


@cache
def tested_pairs() -> list[str]:
    """Of each test record, the two people of its question, in either order the same."""
    from raytune_llm.data.demo import path

    lines = path("data/rationale/test.jsonl").read_text().splitlines()
    return [" ".join(sorted(json.loads(line)["input_text"].split())) for line in lines]


def report(rows: list[dict[str, Any]], picture: Path) -> str:
    """The table as Markdown; the plot is written next to it."""
    cells: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["arm"], row["share"]].append(row)
    shares = sorted({share for _, share in cells})
    lines = ["| records | " + " | ".join(ARMS) + " | dss − finetuning | by seed |", "|---" * (len(ARMS) + 3) + "|"]
    means: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for share in shares:
        shown = []
        for arm in ARMS:
            mean, low, high = interval([cells[arm, share]])
            means[arm].append((share, mean, low, high))
            shown.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        mean, low, high = interval([cells["dss", share], cells["finetuning", share]])
        accuracy = {(row["arm"], row["seed"]): row["test_accuracy"] for arm in ARMS for row in cells[arm, share]}
        seeds = sorted({seed for _, seed in accuracy})
        apart = ", ".join(f"{accuracy['dss', seed] - accuracy['finetuning', seed]:+.2f}" for seed in seeds)
        count = cells["dss", share][0]["records"]
        lines.append(
            f"| {count} ({share:.0%}) | " + " | ".join(shown) + f" | {mean:+.3f} [{low:+.3f}, {high:+.3f}] | {apart} |"
        )
    picture.write_text(plot(means))
    return "\n".join(lines)


def plot(means: dict[str, list[tuple[float, float, float, float]]]) -> str:
    """Accuracy against share, an SVG of 640 × 400."""

    def x(share: float) -> float:
        return 70 + 400 * float(np.log(share / 0.1) / np.log(10))

    def y(accuracy: float) -> float:
        return 350 - 310 * accuracy

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" font-family="sans-serif" font-size="13">',
        '<rect width="640" height="400" fill="white"/>',
        '<text x="270" y="20" text-anchor="middle">test accuracy by share of the records, mean over seeds</text>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line x1="60" x2="480" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for share in SHARES:
        parts.append(f'<text x="{x(share):.1f}" y="372" text-anchor="middle">{share:.0%}</text>')
    for place, (arm, points) in enumerate(means.items()):
        colour, shift = COLOURS[arm], 3 * (place - 1.5)
        line = " ".join(f"{x(share) + shift:.1f},{y(mean):.1f}" for share, mean, _, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for share, mean, low, high in points:
            at = x(share) + shift
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{at:.1f}" cy="{y(mean):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(f'<rect x="500" y="{60 + 24 * place}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="522" y="{67 + 24 * place}">{arm}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "dss.jsonl", help="a row an arm; appended to"
    )
    parser.add_argument("--only", nargs=2, type=float, metavar=("SEED", "SHARE"))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "dss.svg")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["seed"], row["share"]) for row in rows}
    grid = (
        [(int(given.only[0]), given.only[1])] if given.only else [(seed, share) for seed in SEEDS for share in SHARES]
    )
    for seed, share in [] if given.report else [cell for cell in grid if cell not in done]:
        found = run(seed, share)
        with given.out.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in found))
        print(
            f"seed {seed} share {share:g}: "
            + ", ".join(f"{row['arm']} {row['test_accuracy']:.3f}" for row in found)
            + f" ({found[0]['pack_cpu_seconds']:.0f} s)",
            flush=True,
        )
        rows += found
    print(report(rows, given.picture))


if __name__ == "__main__":
    main()
