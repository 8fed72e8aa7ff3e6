"""A whole sweep under Ray, 16 trials without early stopping, against TRL trials one and four at a time on the same GPU.

    ours    this project's sweep up to its leaderboard, trials packed
    trl_1   Ray Tune over TRL's SFTTrainer with PEFT, one trial at a time on the GPU
    trl_4   the same, four at a time, each with a quarter of the GPU: the fair rival

All sides: adapter sizes 1, 4, 8, 16 × four rates, batch 8 of at most 128 tokens, evaluations every 50 steps on 32
records, the adapter saved at each; TRL's processes are warm (reuse_actors) and get tokenized records. Wall seconds from
the interpreter's start to the last result. TRL runs only the first two waves of its trials: the later one, which pays
no start, counts for all that follow.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .llama import write_base
from .step import Step, main

TRIALS, STEPS, EVAL_EVERY, TOKENS = 16, 200, 50, 128
TRAIN_RECORDS, EVAL_RECORDS = 512, 32
TEMPLATE_TOKENS = 4
"""Room for what the template adds to a record."""
AT_ONCE = {"trl_4": 4, "trl_1": 1}
SMOKE_AT_ONCE = {"trl_1": 1}


def run(step: Step) -> None:
    task = prepared(step)
    ours = wall_seconds(step, "ours", task)
    step.add(ours_seconds=ours["wall"], ours_trial_steps=ours["trial_steps"])
    for side, at_once in (SMOKE_AT_ONCE if step.smoke else AT_ONCE).items():
        found = wall_seconds(step, side, task | {"at_once": at_once})
        step.add(**{f"{side}_seconds": all_waves(found, at_once, task["trials"]), f"{side}_measured": found})


def all_waves(found: dict[str, Any], at_once: int, trials: int) -> float:
    """Seconds that so many trials take, from the ends of those that were run."""
    ends = [end - found["started"] for end in sorted(found["ends"])]
    waves = len(ends) // at_once
    first, last = ends[at_once - 1], ends[-1]
    later = (last - first) / (waves - 1) if waves > 1 else last
    return first + (trials / at_once - 1) * later


def prepared(step: Step) -> dict[str, Any]:
    """What all sides are given: the base, the records and their tokens."""
    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.prepare import prepare

    base = write_base(step.scratch / ("tiny" if step.smoke else "1b"), "tiny" if step.smoke else "1b", step.device)
    length = 24 if step.smoke else TOKENS
    write_records(step.scratch, base, length)
    steps, every = (4, 2) if step.smoke else (STEPS, EVAL_EVERY)
    overrides = [
        *("model=hub", f"model.name_or_path={base}"),
        *(f"data.train={step.scratch}/train.jsonl", f"data.eval={step.scratch}/eval.jsonl"),
        *(f"data.max_tokens={length}", "tuning.batch_size=8", f"tuning.steps={steps}", f"tuning.eval_every={every}"),
        *("tuning.warmup_steps=10", "tuning.early_stopping.patience=null"),
    ]
    job = load("train", overrides)
    examples = prepare(job).examples
    tokens = {
        split: [{"input_ids": e["completion"].input_ids, "labels": e["completion"].labels} for e in found]
        for split, found in (("train", examples.train), ("eval", examples.eval))
    }
    (step.scratch / "tokens.json").write_text(json.dumps(tokens))
    lengths = [len(row["input_ids"]) for row in tokens["train"]]
    step.add(mean_tokens=sum(lengths) / len(lengths), trials=TRIALS, steps=steps)
    return {
        "base": str(base),
        "data": str(step.scratch),
        "rate": job.model.recommended_rate(),
        "overrides": overrides,
        "own_overrides": own_overrides(step, steps),
        "steps": [steps],
        "dtype": "bfloat16",
        "every": every,
        "trials": 2 if step.smoke else TRIALS,
        "waves": 1 if step.smoke else 2,
        "use_gpu": step.on_gpu,
    }


def own_overrides(step: Step, steps: int) -> list[str]:
    """Of this project's sweep, over what sweep_makespan.py has by itself."""
    found = [f"sweep.space.tuning.steps=[{steps}]", "sweep/scheduler=none", "sweep/backend=packed"]
    found += [f"scaling.use_gpu={str(step.on_gpu).lower()}"]
    if step.smoke:
        found += ["sweep.space.tuning.adapter_size=[1,4]", "sweep.space.tuning.learning_rate_multiplier=[1.0]"]
    return found


def write_records(folder: Path, base: Path, length: int) -> None:
    """Questions and answers of words that are one token each, `length` tokens a record."""
    from transformers import AutoTokenizer

    from raytune_llm.data.demo import path as demo_path

    tokenizer = AutoTokenizer.from_pretrained(base)
    lines = Path(demo_path("data/sarcasm/train.jsonl")).read_text().splitlines()
    texts = [json.loads(line)["input_text"] for line in lines]
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.encode(" " + word, add_special_tokens=False)) == 1]
    generator = random.Random(0)
    for name, count in (("train", TRAIN_RECORDS), ("eval", EVAL_RECORDS)):
        lines = []
        for _ in range(count):
            drawn = generator.choices(words, k=length - TEMPLATE_TOKENS)
            half = len(drawn) // 2
            lines.append(json.dumps({"input_text": " ".join(drawn[:half]), "output_text": " ".join(drawn[half:])}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def wall_seconds(step: Step, side: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a fresh process; its figures, with `wall` and `started`. Raises RuntimeError when it fails."""
    home = step.scratch / f"sweep-{side}"
    home.mkdir()
    task = task | {"side": side, "home": str(home), "result": str(home / "result.json")}
    (home / "task.json").write_text(json.dumps(task))
    started = time.time()
    done = subprocess.run([sys.executable, "-m", "gpu_steps.sweep_side", str(home / "task.json")], env=os.environ)
    result = home / "result.json"
    if done.returncode or not result.is_file():
        raise RuntimeError(f"{side} ended with status {done.returncode}")
    return json.loads(result.read_text()) | {"wall": result.stat().st_mtime - started, "started": started}


if __name__ == "__main__":
    main(run)
