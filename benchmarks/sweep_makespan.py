"""How long a sweep takes: the usual set-up, the same with everything a careful user would do, and this project.

    python benchmarks/sweep_makespan.py                                   the embedded base and data
    python benchmarks/sweep_makespan.py --base stories260K=PATH --data TRAIN.jsonl EVAL.jsonl
    python benchmarks/sweep_makespan.py --base random-10m                 a random Llama of about 10 M parameters
    python benchmarks/sweep_makespan.py --base smollm2=PATH --data … --steps 25 50 100 --dtype bfloat16
    python benchmarks/sweep_makespan.py --decompose                       the steps between the sides, too

16 configurations (adapter sizes 1, 4, 8, 16 × four learning rates) × steps 50, 100, 200 (--steps); batch 8; at most 128
tokens; 64 eval rows every 25 steps; ASHA from 25 steps on, by 3; constant rate after 10 steps; 2 cores in all.

    usual     Ray Tune + ASHA, one process a trial, two at a time with one thread each: TRL's SFTTrainer on a PEFT
              model, given the records as its documentation does, an adapter saved at every evaluation, steps an axis
              of the grid (48 trials)
    careful   the same with warm processes (reuse_actors), records tokenized once for all, the steps folded into one
              run of each configuration, and the base in --dtype
    ours      jobs/sweep.py up to its leaderboard, the base in --dtype

Each run is a fresh process, from the interpreter's start to the last trial's end, Ray's start included; sides take
turns. CPU seconds are those of all its processes. The best adapter of each side is scored once more by one scorer on
the eval rows. Seconds mean something on an idle machine; the load is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "RAYTUNE_LLM_BENCHMARK_RUN"
SIZES, RATES = (1, 4, 8, 16), (0.3, 1.0, 3.0, 10.0)
BATCH_SIZE, MAX_TOKENS, EVAL_ROWS, EVAL_EVERY, WARMUP = 8, 128, 64, 25, 10
GRACE_STEPS, REDUCTION_FACTOR = 25, 3
SIDES = {
    "usual": {"side": "tune", "dtype": "float32"},
    "careful": {"side": "tune", "warm": True, "tokenized": True, "folded": True},
    "ours": {"side": "ours"},
}
BETWEEN = {
    "warm": {"side": "tune", "dtype": "float32", "warm": True},
    "ours, not packed": {"side": "ours", "own_overrides": ["sweep/backend=ray_train"]},
    "ours, no early stopping": {"side": "ours", "own_overrides": ["sweep/scheduler=none"]},
}
POLL_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="demo", help="demo, random-10m, or NAME=FOLDER")
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "EVAL"), default=None)
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 100, 200], help="steps in the grid, ascending")
    parser.add_argument("--sizes", nargs="+", type=int, default=[*SIZES], help="adapter sizes in the grid")
    parser.add_argument("--rates", nargs="+", type=float, default=[*RATES], help="rate multipliers in the grid")
    parser.add_argument("--dtype", default="float32", help="of the frozen base, but for the usual set-up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, *BETWEEN], default=None)
    parser.add_argument("--decompose", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        task = json.loads(Path(arguments.run).read_text())
        return {"tune": run_tune, "ours": run_ours}[task["side"]](task)
    sides = arguments.sides or [*SIDES, *(BETWEEN if arguments.decompose else ())]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="makespan-") as folder:
        common = prepared(arguments.base, arguments.data, arguments.steps, Path(folder))
        common |= {"dtype": arguments.dtype, "sizes": arguments.sizes, "rates": arguments.rates}
        for index in range(arguments.rounds):
            for place, side in enumerate(sides):
                task = {**common, **{**SIDES, **BETWEEN}[side], "home": f"{folder}/{index}-{place}"}
                runs[side].append(measured(task))
                print(f"round {index + 1}  {side:24s} {json.dumps(runs[side][-1])}", flush=True)
    conclude(arguments.base, runs)


def prepared(base: str, data: list[str] | None, steps: list[int], folder: Path) -> dict[str, Any]:
    """What every side is given: the base, the records, and for TRL's sake their tokens."""
    from raytune_llm.data.demo import path as demo
    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.prepare import prepare

    name, _, path = base.partition("=")
    if name == "demo":
        path = str(demo("base"))
    elif name == "random-10m":
        path = str(random_llama(folder / "base", demo("base")))
    elif not Path(path).is_dir():
        raise SystemExit(f"--base {base}: there is no folder {path!r}; expected demo, random-10m or NAME=FOLDER")
    path = str(Path(path).resolve())
    train, evaluation = data or [str(demo("data/sarcasm/train.jsonl")), str(demo("data/sarcasm/eval.jsonl"))]
    rows = Path(evaluation).read_text().splitlines()[:EVAL_ROWS]
    (folder / "eval.jsonl").write_text("\n".join(rows) + "\n")
    overrides = [
        *("model=demo" if name == "demo" else "model=hub", f"model.name_or_path={path}", "model.dtype=float32"),
        *(f"data.train={train}", f"data.eval={folder}/eval.jsonl", f"data.max_tokens={MAX_TOKENS}"),
        *(f"tuning.batch_size={BATCH_SIZE}", f"tuning.eval_every={EVAL_EVERY}", f"tuning.warmup_steps={WARMUP}"),
        *("tuning.early_stopping.patience=null", f"tuning.steps={steps[-1]}"),
    ]
    job = load("train", overrides)
    examples = prepare(job).examples
    tokens = {
        split: [{"input_ids": e["completion"].input_ids, "labels": e["completion"].labels} for e in found]
        for split, found in (("train", examples.train), ("eval", examples.eval))
    }
    (folder / "tokens.json").write_text(json.dumps(tokens))
    texts = {"train": train, "eval": str(folder / "eval.jsonl")}
    for split, source in texts.items():
        records = map(json.loads, Path(source).read_text().splitlines())
        lines = [json.dumps({"prompt": r["input_text"] + "\n", "completion": r["output_text"]}) for r in records]
        (folder / f"{split}-texts.jsonl").write_text("\n".join(lines))
    rate = job.model.recommended_rate()
    return {"base": path, "data": str(folder), "overrides": overrides, "rate": rate, "steps": steps}


def random_llama(folder: Path, tokenizer: Path) -> Path:
    """A base whose work is that of a small real one; it has learned nothing."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def measured(task: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a fresh process; wall and CPU seconds, trial-steps, trials, best eval loss."""
    folder = Path(task["home"])
    folder.mkdir(parents=True)
    task |= {"result": str(folder / "result.json")}
    (folder / "task.json").write_text(json.dumps(task))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", MARK: str(folder)}
    load = os.getloadavg()[0]
    started = time.monotonic()
    command = [sys.executable, __file__, "--run", str(folder / "task.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, stdout=log, stderr=log)
        spent: dict[tuple[int, float], float] = {}
        ended = None
        while process.poll() is None:
            count_cpu(str(folder), spent)
            if ended is None and Path(task["result"]).exists():
                ended = time.monotonic() - started, sum(spent.values())
            time.sleep(POLL_SECONDS)
    if process.returncode or ended is None:
        raise RuntimeError(f"{task['side']} failed:\n" + (folder / "log").read_text()[-4000:])
    wall, cpu = ended
    figures = json.loads(Path(task["result"]).read_text())
    loss = scored(task, figures.pop("adapter"))
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        **figures,
        "eval_loss": round(loss, 4),
        "load": round(load, 1),
    }


def count_cpu(mark: str, spent: dict[tuple[int, float], float]) -> None:
    """Bring up to date what each process of a run, known by its environment, has spent."""
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                key = process.pid, process.create_time()
                if key not in spent and process.environ().get(MARK) != mark:
                    continue
                times = process.cpu_times()
                spent[key] = times.user + times.system
        except psutil.Error:
            continue


def run_ours(task: dict[str, Any]) -> None:
    """jobs/sweep.py as far as its leaderboard."""
    import ray

    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.stages import prepare_job
    from raytune_llm.sweep import leaderboard, tuner
    from raytune_llm.sweep.phases import Phase
    from raytune_llm.sweep.plan import make_plan
    from raytune_llm.sweep.tables import leaderboard_table

    grid = {"learning_rate_multiplier": task.get("rates", RATES), "adapter_size": task.get("sizes", SIZES)}
    space = {"steps": task["steps"], **grid}
    axes = [f"sweep.space.tuning.{key}={list(values)}" for key, values in space.items()]
    asha = [f"sweep.scheduler.grace_steps={GRACE_STEPS}", f"sweep.scheduler.reduction_factor={REDUCTION_FACTOR}"]
    own = task.get("own_overrides", [])
    scheduler = [] if any("scheduler" in override for override in own) else asha
    same_work = [f"model.dtype={task['dtype']}", "sweep.confirm.top=0", "evaluation.drift=false"]
    job = load("sweep", [*task["overrides"], *same_work, *axes, *scheduler, f"home={task['home']}", *own])
    planned = make_plan(job.trial_config(), job.sweep.axes())
    started = prepare_job(job)
    prepared = started.prepared
    config = job.trial_config(prepared.better)
    objective = config.objective
    phase = Phase(config=config, examples=ray.put(prepared.examples))
    outcomes = tuner.run(job.sweep, [phase], use_gpu=started.use_gpu, interactive=False).outcomes
    print(leaderboard_table(leaderboard.leaderboard(outcomes, planned, objective), objective.metric, 10))
    steps = sum(outcome.reports[-1].step for outcome in outcomes)
    winner = leaderboard.winner(outcomes, objective)
    give(task, trials=len(outcomes), trial_steps=steps, adapter=f"{winner.checkpoint}/best")


def run_tune(task: dict[str, Any]) -> None:
    """Ray Tune over TRL's trainer, as their documentation shows them together."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from raytune_llm import session

    tokens = json.loads(Path(task["data"], "tokens.json").read_text()) if task.get("tokenized") else None
    session.begin(dashboard=False, num_cpus=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    sources = {"base": task["base"], "data": task["data"], "dtype": task["dtype"]}
    trainable = tune.with_parameters(trl_trial, tokens=tokens, **sources)
    steps = task["steps"][-1:] if task.get("folded") else task["steps"]
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "rank": tune.grid_search(task["sizes"]),
            "learning_rate": tune.grid_search([rate * task["rate"] for rate in task["rates"]]),
            "steps": tune.grid_search(list(steps)),
        },
        tune_config=tune.TuneConfig(
            metric="eval_loss",
            mode="min",
            scheduler=ASHAScheduler(
                time_attr="step",
                max_t=task["steps"][-1] + 1,
                grace_period=GRACE_STEPS,
                reduction_factor=REDUCTION_FACTOR,
            ),
            reuse_actors=bool(task.get("warm")),
        ),
        run_config=tune.RunConfig(
            storage_path=task["home"],
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="eval_loss", checkpoint_score_order="min"
            ),
            verbose=0,
        ),
    )
    results = tuner.fit()
    failed = [str(result.error) for result in results if result.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} trials failed: {failed[0]}")
    best = results.get_best_result("eval_loss", "min", scope="all")
    checkpoint = min(best.best_checkpoints, key=lambda found: found[1]["eval_loss"])[0]
    steps_done = sum(result.metrics["step"] for result in results)
    give(task, trials=len(results), trial_steps=steps_done, adapter=checkpoint.path)


def trl_trial(
    config: dict[str, Any],
    base: str,
    data: str,
    tokens: dict[str, list[Any]] | None,
    dtype: str = "float32",
    arguments: dict[str, Any] | None = None,
) -> None:
    """One trial: SFTTrainer on a LoRA adapter, evaluated, saved and reported every EVAL_EVERY steps, on a CPU unless
    `arguments`, further ones of its SFTConfig, choose otherwise."""
    import torch
    from datasets import Dataset, load_dataset
    from peft import LoraConfig
    from ray import tune
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)

    class Report(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            with tempfile.TemporaryDirectory() as folder:
                trainer.save_model(folder)
                figures = {"eval_loss": metrics["eval_loss"], "step": state.global_step}
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(folder))

    if tokens is None:
        files = {split: f"{data}/{split}-texts.jsonl" for split in ("train", "eval")}
        splits = load_dataset("json", data_files=files)
    else:
        splits = {split: Dataset.from_list(rows) for split, rows in tokens.items()}
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "output_dir": output,
            "max_steps": config["steps"],
            "learning_rate": config["learning_rate"],
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": WARMUP,
            "per_device_train_batch_size": BATCH_SIZE,
            "per_device_eval_batch_size": 4 * BATCH_SIZE,
            "eval_strategy": "steps",
            "eval_steps": EVAL_EVERY,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "max_length": MAX_TOKENS,
            "seed": 0,
            "dataset_kwargs": {"skip_prepare_dataset": tokens is not None},
        }
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=dtype),
            args=SFTConfig(**settings | (arguments or {})),
            train_dataset=splits["train"],
            eval_dataset=splits["eval"],
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=config["rank"], lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Report()],
        )
        trainer.train()


def give(task: dict[str, Any], **figures: Any) -> None:
    """Write a side's result; its clock stops here."""
    partial = Path(task["result"] + ".partial")
    partial.write_text(json.dumps(figures))
    partial.rename(task["result"])


def scored(task: dict[str, Any], adapter: str) -> float:
    """Eval loss of an adapter by this project's scorer."""
    from raytune_llm.evaluation.loss import evaluate
    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.prepare import prepare
    from raytune_llm.models.loading import load_tuned

    job = load("train", task["overrides"])
    model = load_tuned(adapter, job.model)
    scores = evaluate(model, prepare(job).examples.eval, job.method.terms, pad_id=0, batch_size=32)
    return scores.metrics()["eval/loss"]


def conclude(base: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Medians of each side, and how many times less each costs than the first."""
    keys = ("wall_s", "cpu_s", "trial_steps", "eval_loss")
    median = {side: {key: statistics.median(run[key] for run in of) for key in keys} for side, of in runs.items()}
    first = median[next(iter(median))]
    columns = ("wall s", "CPU s", "trials", "trial-steps", "eval loss", "wall ×", "CPU ×")
    print("\n" + f"{'side':24s}" + "".join(f"{column:>12s}" for column in columns))
    for side, values in median.items():
        cells = [f"{values['wall_s']:.1f}", f"{values['cpu_s']:.1f}", f"{runs[side][0]['trials']}"]
        cells += [f"{values['trial_steps']:.0f}", f"{values['eval_loss']:.4f}"]
        cells += [f"{first[key] / values[key]:.2f}" for key in ("wall_s", "cpu_s")]
        print(f"{side:24s}" + "".join(f"{cell:>12s}" for cell in cells))
    machine = {"cores": os.cpu_count(), "load_before": [run["load"] for run in next(iter(runs.values()))]}
    print(json.dumps({"benchmark": "sweep_makespan", "base": base, **machine, "runs": runs}))


if __name__ == "__main__":
    main()
