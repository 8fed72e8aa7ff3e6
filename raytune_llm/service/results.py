"""What a finished run left: the job's result and its result files."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytune_llm.service.records import Result, StoredFile, TuningRequest
from raytune_llm.service.run_files import RunFiles, Trial
from raytune_llm.service.store import Store

PURPOSE = "fine-tune-results"
METRICS, LEADERBOARD = "step_metrics.csv", "leaderboard.csv"
COLUMNS = {
    "step": None,
    "train_loss": "train/loss",
    "train_accuracy": "train/token_accuracy",
    "valid_loss": "eval/loss",
    "valid_mean_token_accuracy": "eval/token_accuracy",
}
"""Of the metrics file: OpenAI's names, and ours."""
SINGLE = "train"
"""The command of a job whose hyperparameters all have values."""


def result_of(outcome: Mapping[str, Any], command: Sequence[str]) -> Result:
    """A run's result.json as the job's result. A version is named where nothing was left to be found, else only if it
    was promoted."""
    promoted = bool(outcome["promoted"])
    sentences = [*outcome["verdicts"], *filter(None, [outcome.get("contradiction")])]
    return Result(
        version=outcome["version"],
        is_named=promoted or command[1] == SINGLE,
        text="; ".join(sentences) or "Compared with nothing",
        step=int(outcome["step"]),
        metrics={name: float(value) for name, value in outcome["metrics"].items()},
        trained_tokens=int(outcome.get("trained_tokens") or 0),
    )


def write_files(
    store: Store, request: TuningRequest, run: RunFiles, trials: Sequence[Trial], outcome: Mapping[str, Any], now: float
) -> tuple[str, ...]:
    """Store the metrics of the winning trial and, for a sweep, its leaderboard; their ids. Written again, they are the
    same files."""
    won = next((trial for trial in trials if trial.id == outcome["trial"]), trials[0] if len(trials) == 1 else None)
    contents = {METRICS: metrics_csv(won)}
    if (leaderboard := run.file(LEADERBOARD)) is not None:
        contents[LEADERBOARD] = leaderboard
    return tuple(_write(store, request, name, content, now) for name, content in contents.items())


def metrics_csv(trial: Trial | None) -> bytes:
    """A trial's metrics in OpenAI's columns, one row a step; empty where there is no value."""
    rows: dict[int, dict[str, float]] = {}
    for point in () if trial is None else trial.points:
        rows.setdefault(point.step, {}).update(point.metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step in sorted(rows):
        writer.writerow([step, *(rows[step].get(name, "") for name in COLUMNS.values() if name is not None)])
    return text.getvalue().encode()


def _write(store: Store, request: TuningRequest, name: str, content: bytes, now: float) -> str:
    id = f"file-{hashlib.sha256(f'{request.id}/{name}'.encode()).hexdigest()[:24]}"
    if store.file(id) is not None:
        return id
    with contextlib.suppress(FileNotFoundError):
        store.delete_file(id)  # what a killed service left of it
    file = StoredFile(
        id=id,
        owner=request.owner,
        filename=name,
        purpose=PURPOSE,
        num_bytes=len(content),
        num_lines=content.count(b"\n"),
        sha256=hashlib.sha256(content).hexdigest(),
        created=int(now),
        location=store.file_location(id, ".csv"),
    )
    with tempfile.TemporaryDirectory(prefix="raytune-llm-result-") as folder:
        source = Path(folder, name)
        source.write_bytes(content)
        store.add_file(file, source)
    return id
