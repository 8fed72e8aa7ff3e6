"""The sweep while it runs: how many trials are where, the best so far, time left at most."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from raytune_llm.evaluation.terms import lower_is_better
from raytune_llm.sweep.tables import text_table

SHOWN = 6


class LiveTable(tune.Callback):
    """Prints a short table now and then."""

    def __init__(self, metric: str, num_trials: int, steps: int, interactive: bool):
        self.metric, self.num_trials, self.steps = metric, num_trials, steps
        self.period_seconds = 5.0 if interactive else 20.0
        self.rows: dict[str, dict[str, Any]] = {}
        self.ended: set[str] = set()

    def setup(self, *args: Any, **info: Any) -> None:
        """The sweep begins, or goes on in another process."""
        self.started = self.printed = time.monotonic()
        self.done_before = self.done()

    def get_state(self) -> dict[str, Any]:
        """What Tune stores, for a restored sweep to know."""
        return {"rows": self.rows, "ended": self.ended}

    def set_state(self, state: dict[str, Any]) -> None:
        self.rows, self.ended = state["rows"], state["ended"]
        self.done_before = self.done()

    def done(self) -> int:
        """Steps that need not be done any more, those saved by early stopping included."""
        return sum(self.steps if id in self.ended else row["step"] for id, row in self.rows.items())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        best = self.rows.get(trial.trial_id, {}).get("best")
        value = result[self.metric]
        better = best is None or (value < best if lower_is_better(self.metric) else value > best)
        self.rows[trial.trial_id] = {
            "values": dict(trial.config),
            "step": result["step"],
            "now": value,
            "best": value if better else best,
            "train": result.get("train/loss"),
        }
        if time.monotonic() - self.printed > self.period_seconds:
            self.printed = time.monotonic()
            print(self.text(), flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.add(trial.trial_id)
        print(f"trial {trial.trial_id} failed; its error stands in {trial.path}/error.txt", flush=True)

    def text(self) -> str:
        """Header line and the best trials so far."""
        elapsed = time.monotonic() - self.started
        done = self.done()
        left = elapsed * (self.num_trials * self.steps - done) / max(1, done - self.done_before)
        header = (
            f"{len(self.ended)} of {self.num_trials} trials ended, {len(self.rows) - len(self.ended)} running, "
            f"{elapsed:.0f} s, at most {left:.0f} s left"
        )
        sign = 1 if lower_is_better(self.metric) else -1
        best = sorted(self.rows.items(), key=lambda item: sign * item[1]["best"])[:SHOWN]
        columns = ["trial", *short_keys(self.rows), "step", "train/loss", self.metric, "best", ""]
        rows = [
            [
                id,
                *map(number, row["values"].values()),
                str(row["step"]),
                number(row["train"]),
                number(row["now"]),
                number(row["best"]),
                "" if id in self.ended else "running",
            ]
            for id, row in best
        ]
        return f"\n{header}\n{text_table(columns, rows)}"


def short_keys(rows: dict[str, dict[str, Any]]) -> list[str]:
    first = next(iter(rows.values()))
    return [key.rsplit(".", 1)[-1] for key in first["values"]]


def number(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
