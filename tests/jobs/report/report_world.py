"""Reports made by code, of any number of trials, for tests of the page that need no run."""

import math
import random

from raytune_llm.jobs.report.data import (
    Amount,
    CommandLine,
    Compared,
    DataFacts,
    FoundInData,
    Knob,
    Matrix,
    Point,
    Rank,
    RunReport,
    SampleText,
    Section,
    Sentence,
    Span,
    TrialRun,
)

MARKUP = '</script><img src=x onerror="alert(1)"><script>alert(2)</script>'
RATE, SIZE, SCHEDULE = "tuning.learning_rate_multiplier", "tuning.adapter_size", "tuning.schedule"
KNOBS = (
    Knob(key=RATE, label="learning_rate_multiplier", scale="log"),
    Knob(key=SIZE, label="adapter_size", scale="log"),
    Knob(key=SCHEDULE, label="schedule", scale="categories"),
)


def trial(place: int, *, num_reports: int = 12, ended: str | None = None) -> TrialRun:
    """The same trial for the same place."""
    chance = random.Random(place)
    rate, size = round(10 ** chance.uniform(-1, 1.3), 3), chance.choice([1, 4, 8, 16])
    values = {RATE: rate, SIZE: size, SCHEDULE: chance.choice(["constant", "linear"])}
    floor = 0.3 + 0.5 * (math.log10(rate) - 0.4) ** 2 + 0.05 / size
    stops = num_reports if place % 3 == 0 else max(1, num_reports * chance.randint(2, 9) // 10)
    start = 1_800_000_000 + 12.0 * (place // 4)
    points = [
        Point(
            step=10 * step,
            time=start + 1.5 * step,
            metrics={
                "eval/loss": floor + math.exp(-0.5 * step) + chance.gauss(0, 0.01),
                "train/loss": floor + math.exp(-0.6 * step),
                "eval/token_accuracy": 1 - floor / 3,
                "time/seconds": 1.4 * step,
                "cost/gpu_hours": 0.0,
            },
        )
        for step in range(1, stops + 1)
    ]
    best = min(points, key=lambda point: point.metrics["eval/loss"])
    span = Span(
        start=start, end=points[-1].time, host="node", device="CPU", process=100 + place % 4 // 2, is_exact=True
    )
    return TrialRun(
        id=f"t{place + 1:04d}",
        values=values,
        origin="search",
        ended=ended or ("complete" if stops == num_reports else "scheduler"),
        seconds=1.4 * stops,
        gpu_hours=0.0,
        best_step=best.step,
        best=best.metrics["eval/loss"],
        points=points,
        spans=[span],
    )


def comparison(systems=("base", "champion", "tuned")) -> dict:
    metrics = {
        "eval/loss": ("lower", 2.0, -0.8),
        "eval/accuracy": ("higher", 0.5, 0.2),
        "eval/f1_macro": ("higher", 0.4, 0.01),
    }
    found = {
        name: {
            system: {
                "value": start + place * step,
                "low": start + place * step - 0.1,
                "high": start + place * step + 0.1,
            }
            for place, system in enumerate(systems)
        }
        for name, (_, start, step) in metrics.items()
    }
    differences = [
        {
            "metric": name,
            "better": better,
            "system": systems[-1],
            "reference": systems[0],
            "value": step * (len(systems) - 1),
            "low": step - 0.05,
            "high": step + 0.05,
            "num_differing": 30,
            "significant": abs(step) > 0.05,
        }
        for name, (better, _, step) in metrics.items()
    ]
    return {
        "systems": list(systems),
        "metrics": found,
        "directions": {name: better for name, (better, _, _) in metrics.items()},
        "differences": differences,
        "num_examples": 256,
        "num_draws": 1000,
    }


def compared(text: str = "Fine.") -> Compared:
    answers = {"base": "It is bad.", "champion": text, "tuned": "It is sarcastic"}
    sample = SampleText(prompt=f"Is Eve sarcastic?\n{text}", reference="It is sarcastic.", answers=answers)
    matrix = Matrix(labels=["sarcastic", "sincere", text], counts=[[40, 3, 0, 2], [5, 38, 1, 0], [0, 0, 0, 0]])
    return Compared(
        split="test",
        metric="eval/loss",
        comparison=comparison(),
        samples=[sample],
        confusions={"base": matrix, "tuned": matrix},
        tables={"Judged by others": [["system", "wins"], ["tuned", "31"], [text, "2"]]},
    )


def sweep_report(num_trials: int = 9, *, text: str = "Fine.", num_reports: int = 12) -> RunReport:
    """A sweep's; `text`: what a model or the data wrote, in every place that such a text has."""
    trials = [trial(place, num_reports=num_reports) for place in range(num_trials)]
    ranked = sorted(trials, key=lambda one: one.best)
    rows = [
        Rank(trial=one.id, values=one.values, step=one.best_step, metrics=one.points[-1].metrics, ended=one.ended)
        for one in ranked
    ]
    return RunReport(
        command="sweep",
        name="demo",
        run="20260131-120000",
        version="demo@3",
        state="champion",
        created="2026-01-31T12:00:00Z",
        facts={"base": text, "method": "sft", "trained": f"{num_trials} trials"},
        verdicts=[
            Sentence(text="tuned beats base on eval/loss by 0.8 [0.7, 0.9] (eval set)", tone="sound"),
            Sentence(text="no significant difference between tuned and champion on eval/loss", tone="warning"),
        ],
        metric="eval/loss",
        lower_is_better=True,
        knobs=KNOBS,
        winner=ranked[0].id,
        winner_values=ranked[0].values,
        leaderboard=rows,
        trials=trials,
        compared=[compared(text)],
        amounts=[Amount(name="training", unit="s", predicted=100.0, actual=120.0)],
        costs={"hours": "0.1"},
        seconds={"start": 3.0, "training": 120.0, "comparing and publishing": 20.0},
        data=DataFacts(
            verdict="usable, with 1 warning",
            findings=[FoundInData(severity="warning", kind="leakage", text=text, places=[f"train.jsonl:3 · {text}"])],
            columns=["split", "records"],
            rows=[["train", "1,000"], ["eval", "256"]],
        ),
        sections=[
            Section(
                title="Is the winner luck?",
                paragraphs=[text],
                columns=["trial", *(f"learning_rate_multiplier_{place}" for place in range(6)), "first"],
                rows=[["t0001", *["3"] * 6, "0.7"]],
                verdict=Sentence(text="not luck", tone="sound"),
            )
        ],
        commands=[CommandLine(meaning="this run, again", text=f"raytune-llm sweep name=demo '{text}'")],
        card=f"demo@3\n  {text}",
    )
