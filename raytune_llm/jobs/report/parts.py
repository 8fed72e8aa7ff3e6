"""The parts of a report that need no trials: comparison, data check, card, commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from raytune_llm.data.doctor.view import printable
from raytune_llm.evaluation import report
from raytune_llm.jobs.help import called
from raytune_llm.jobs.report.data import (
    CommandLine,
    Compared,
    DataFacts,
    FoundInData,
    Matrix,
    SampleText,
    Section,
    Sentence,
)
from raytune_llm.jobs.schema import EvaluateJob, TrainJob
from raytune_llm.jobs.summary import NEXT
from raytune_llm.stores.card import describe
from raytune_llm.sweep.label_curve import COVERS, LabelCurve

if TYPE_CHECKING:
    from raytune_llm.data.doctor.results import Lengths, Results
    from raytune_llm.jobs.compare import ComparisonResult
    from raytune_llm.jobs.confirm import Confirmation
    from raytune_llm.stores.card import Version

SECRET = re.compile(r'("(?:api_key|secret|password|access_token|hub_token|token)": )"[^"]*"')


def compared(result: ComparisonResult, split: str, metric: str) -> Compared:
    """A comparison on one split."""
    confusions = result.confusions or {}
    return Compared(
        split=split,
        metric=metric,
        comparison=report.as_json(result.comparison),
        samples=[SampleText(prompt=one.prompt, reference=one.reference, answers=one.answers) for one in result.samples],
        confusions={system: Matrix(labels=one.labels, counts=one.counts) for system, one in confusions.items()},
        tables=result.tables or {},
    )


def data_facts(diagnosis: Results) -> DataFacts:
    """What the data check says, in short; the whole of it is in data/report.html."""
    findings = [
        FoundInData(
            severity=found.severity.value,
            kind=found.kind,
            text=printable(found.text),
            places=[f"{place.where} · {place.excerpt}" for place in found.places],
        )
        for found in diagnosis.findings
    ]
    rows = [
        [
            name,
            f"{split.num_records:,}",
            ", ".join(split.kinds),
            _lengths(split.prompt_tokens),
            _lengths(split.completion_tokens),
            ", ".join(f"{code} {100 * share:.0f} %" for code, share in split.languages.items()),
        ]
        for name, split in diagnosis.splits.items()
    ]
    columns = ["split", "records", "kind", "prompt tokens (median, longest)", "completion tokens", "languages"]
    shown = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return DataFacts(
        verdict=printable(diagnosis.verdict),
        findings=findings,
        columns=[columns[place] for place in shown],
        rows=[[row[place] for place in shown] for row in rows],
    )


def _lengths(found: Lengths | None) -> str:
    return "" if found is None else f"{found.median:,}, {found.longest:,}"


def of_label_curve(curve: LabelCurve) -> Section:
    """What more labels would do."""
    known = zip(curve.num_records, curve.values, strict=True)
    rows = [[f"{count:,}", f"{value:.4f}", "trained"] for count, value in known]
    return Section(
        title="Would more labels help?",
        paragraphs=[curve.sentence(), COVERS],
        columns=["records", curve.metric, "how"],
        rows=[*rows, [f"{curve.predicted_records:,}", f"{curve.predicted.value:.4f}", "extrapolated"]],
    )


def of_confirmation(confirmation: Confirmation) -> Section:
    """Whether the winner is luck."""
    tone = "sound" if confirmation.ranking.is_clear else "note"
    return Section(
        title="Is the winner luck?",
        paragraphs=[
            f"Each was trained again with fresh seeds and measured on {confirmation.ranking.num_records} "
            f"{confirmation.split} records, which stopped no trial. First: the probability that it is the best of them."
        ],
        columns=confirmation.columns(),
        rows=confirmation.rows(),
        verdict=Sentence(text=confirmation.verdict, tone=tone),
    )


def card_text(version: Version) -> str:
    """The version's card as text, without what opens a door."""
    return SECRET.sub(r'\1"…"', describe(version))


def followed(job: TrainJob, version: Version) -> list[CommandLine]:
    """What is usually done next with a published version."""
    command, overrides, meaning = NEXT[version.card.kind]
    given = f"{overrides.format(version=version.reference)} home={job.home}"
    return [CommandLine(meaning=meaning, text=f"{called(command)} {given}")]


def next_commands(job: TrainJob | EvaluateJob, version: Version) -> list[CommandLine]:
    """What can be done with any version."""
    of_version = f"adapter={version.reference} data.test=… home={job.home}"
    rollback = f"action=rollback version={version.name} home={job.home}"
    show = f"action=show version={version.reference} home={job.home}"
    return [
        CommandLine(meaning="compare it with its base on other records", text=f"{called('evaluate')} {of_version}"),
        CommandLine(meaning="show its card", text=f"{called('registry')} {show}"),
        CommandLine(meaning="roll the champion back to the one before", text=f"{called('registry')} {rollback}"),
    ]
