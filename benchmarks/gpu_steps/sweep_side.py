"""One side of whole_sweep.py, a process of its own: `python -m gpu_steps.sweep_side TASK.json`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from sweep_makespan import RATES, SIZES, give, run_ours, trl_trial

CORES_A_TRIAL = 2


def run_trl(task: dict[str, Any]) -> None:
    """Ray Tune over TRL's trainer; so many trials at once share the GPU, or have a core each where there is none."""
    from ray import tune

    from raytune_llm import session

    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            ends.append(time.time())

    at_once, on_gpu = task["at_once"], task["use_gpu"]
    points = [(rank, rate) for rate in RATES for rank in SIZES][: at_once * task["waves"]]
    session.begin(dashboard=False, num_cpus=at_once * CORES_A_TRIAL, num_gpus=int(on_gpu))
    tokens = json.loads(Path(task["data"], "tokens.json").read_text())
    arguments = {"eval_steps": task["every"], "use_cpu": not on_gpu, "bf16": on_gpu, "warmup_steps": 10}
    arguments |= {"dataloader_pin_memory": on_gpu}
    trainable = tune.with_parameters(
        trl_trial, base=task["base"], data=task["data"], tokens=tokens, dtype=task["dtype"], arguments=arguments
    )
    configs = [
        {"rank": rank, "learning_rate": rate * task["rate"], "steps": task["steps"][-1]} for rank, rate in points
    ]
    resources = {"cpu": CORES_A_TRIAL} | ({"gpu": 1 / at_once} if on_gpu else {})
    results = tune.Tuner(
        tune.with_resources(lambda point: trainable(point["trial"]), resources),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once),
        run_config=tune.RunConfig(storage_path=task["home"], callbacks=[Ends()], verbose=0),
    ).fit()
    failed = [str(result.error) for result in results if result.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} trials failed: {failed[0]}")
    losses = [result.metrics["eval_loss"] for result in results]
    give(task, ends=ends, eval_loss=min(losses), trial_steps=sum(result.metrics["step"] for result in results))


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    run_ours(task) if task["side"] == "ours" else run_trl(task)


if __name__ == "__main__":
    main()
