"""The report of a comparison, as files in a run's folder."""

from __future__ import annotations

import dataclasses
import json

from raytune_llm.evaluation import report
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.stores.card import Version
from raytune_llm.stores.storage import open_storage


def write_report(
    run_dir: str, split: str, result: ComparisonResult, version: Version, *, title: str, metric: str
) -> str:
    """Write evaluation-<split>.md and .json into the run's folder; the path of the former."""
    storage = open_storage(run_dir)
    page = report.markdown(
        result.comparison,
        title,
        facts(version),
        metric=metric,
        confusions=result.confusions,
        samples=result.samples,
        tables=result.tables,
    )
    storage.write(f"evaluation-{split}.md", page.encode())
    content = report.as_json(result.comparison, result.details)
    content["samples"] = [dataclasses.asdict(sample) for sample in result.samples]
    storage.write(f"evaluation-{split}.json", json.dumps(content, indent=2, ensure_ascii=False).encode())
    return f"{run_dir}/evaluation-{split}.md"


def facts(version: Version) -> dict[str, object]:
    """A report's first lines: which version, on which base, with which settings."""
    card = version.card
    tuning = card.config["tuning"]
    settings = {key: tuning[key] for key in ("adapter_size", "learning_rate_multiplier", "batch_size", "schedule")}
    return {"version": version.reference, "base": card.base, "method": card.method, "step": card.step, **settings}
