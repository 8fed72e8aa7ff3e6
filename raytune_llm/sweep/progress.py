"""The running sweep on the terminal: how far each trial is, the best so far, an upper bound of the time left."""

from __future__ import annotations

import time
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback

from raytune_llm.sweep.steering import Steering
from raytune_llm.sweep.tables import cell, short_key, text_table
from raytune_llm.training.objective import Report

SHOWN = 6


class LiveTable(TrialProgressCallback):
    """Prints a short table now and then, in place of what Ray Tune prints."""

    def __init__(self, steering: Steering, interactive: bool):
        super().__init__()
        self.steering, self.objective = steering, steering.queue.proposals.objective
        self.period_seconds = 5.0 if interactive else 20.0
        self.rows: dict[str, dict[str, Any]] = {}
        """Of trials that have reported since this start."""
        self.ended: set[str] = set()

    def setup(self, *args: Any, **info: Any) -> None:
        self.started = self.printed = time.monotonic()
        self.done_before = self.done()

    @property
    def num_trials(self) -> int:
        """Of the sweep, those to come included."""
        proposals = self.steering.queue.proposals
        return len(proposals.store.records) + proposals.num_left()

    def done(self) -> int:
        """Steps that are no longer to do, those saved by early stopping included."""
        store, steps = self.steering.queue.proposals.store, self.steering.spending.steps
        most = self.steering.queue.proposals.plan.most_steps()
        return sum(most if id in store.endings else steps.get(id, 0) for id in store.records)

    @property
    def seconds_left(self) -> float:
        """At most, if steps take as long as so far."""
        done = self.done()
        to_do = self.num_trials * self.steering.queue.proposals.plan.most_steps() - done
        return (time.monotonic() - self.started) * to_do / max(1, done - self.done_before)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        now = Report(step=result["step"], metrics={self.objective.metric: result[self.objective.metric]})
        before = self.rows.get(trial.trial_id)
        self.rows[trial.trial_id] = {
            "values": dict(trial.config),
            "now": now,
            "best": self.objective.best([now] if before is None else [before["best"], now]),
            "train": result.get("train/loss"),
        }
        if time.monotonic() - self.printed > self.period_seconds:
            self.printed = time.monotonic()
            print(self.text(), flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)
        print(f"trial {trial.trial_id} failed; see {trial.path}/error.txt", flush=True)

    def text(self) -> str:
        """Header line and the best trials so far."""
        proposals, elapsed = self.steering.queue.proposals, time.monotonic() - self.started
        header = (
            f"{len(proposals.store.endings)} of {self.num_trials} trials ended, "
            f"{len(self.steering.queue.live)} running, "
            f"{elapsed:.0f} s, at most {self.seconds_left:.0f} s left"
        )
        metric = self.objective.metric
        best = sorted(self.rows.items(), key=lambda item: self.objective.cost_of(item[1]["best"]))[:SHOWN]
        shown = [key for _, row in best for key in row["values"]]
        keys = [key for key in dict.fromkeys([*proposals.plan.keys, *shown]) if key in shown]
        columns = ["trial", *map(short_key, keys), "step", "train/loss", metric, "best", ""]
        rows = [
            [
                id,
                *(cell(row["values"].get(key, "")) for key in keys),
                str(row["now"].step),
                cell(row["train"]),
                cell(row["now"].metrics[metric]),
                cell(row["best"].metrics[metric]),
                "" if id in self.ended else "running",
            ]
            for id, row in best
        ]
        return f"\n{header}\n{text_table(columns, rows)}"
