"""Statistics of a job's data, and what in them would spoil the result.

One pass over the records of each split feeds all checks of records; what compares splits works on their keys.
Everything is counted over parsed records and their encoded examples; whether the texts are true or fair is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raytune_llm.data.doctor.advice import DEFAULT_HORIZON, Horizon, advise, notes
from raytune_llm.data.doctor.checks import Checks, look_through
from raytune_llm.data.doctor.diagnosis import Diagnosis
from raytune_llm.data.doctor.duplicates import repeated
from raytune_llm.data.doctor.facts import weights_of
from raytune_llm.data.doctor.instruction import Instruction, find_instruction
from raytune_llm.data.doctor.labels import label_spellings, unknown_labels
from raytune_llm.data.doctor.lacking import small
from raytune_llm.data.doctor.language import foreign
from raytune_llm.data.doctor.leakage import copies, near_copies
from raytune_llm.data.doctor.preview import previews
from raytune_llm.data.doctor.results import SplitFacts
from raytune_llm.data.doctor.truncation import nothing_left
from raytune_llm.data.doctor.view import View
from raytune_llm.data.encoding.encode import EncodedSplits
from raytune_llm.data.files import Splits
from raytune_llm.data.findings import Finding, Severity

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens

ORDER = (Severity.problem, Severity.warning, Severity.note)


def examine(
    splits: Splits,
    encoded: EncodedSplits | None = None,
    tokens: Tokens | None = None,
    *,
    context_tokens: int | None = None,
    horizon: Horizon = DEFAULT_HORIZON,
    strict: bool = False,
    more: Sequence[Finding] = (),
) -> Diagnosis:
    """Count over all splits, and over their tokens where they are encoded, which takes the tokens that did it.

    `context_tokens`: what the base can take, None = not known. `strict` makes problems of warnings. `more`: what was
    found elsewhere.
    """
    of_splits = {} if encoded is None else dict(encoded.items())
    longest = max((split.truncation.longest_tokens for split in of_splits.values()), default=0)
    views = {
        name: View(name, records, of_splits.get(name), partial(splits.where, name), tokens, context_tokens, longest)
        for name, records in splits.items()
    }
    instruction = find_instruction(views["train"].records) if "train" in views else Instruction()
    sources = {name: dict(splits.sources(name)) for name in views}
    checks = {name: look_through(view, instruction) for name, view in views.items()}
    facts = {name: _facts(one, sources[name]) for name, one in checks.items()}
    if "train" in facts:
        facts["train"] = replace(facts["train"], weights=weights_of(splits.origins.get("train")))
    findings = [*_findings(views, checks, facts, instruction), *more]
    if strict:
        findings = [replace(f, severity=Severity.problem) if f.severity is Severity.warning else f for f in findings]
    return Diagnosis(
        splits=facts,
        carved=splits.carved,
        max_tokens=None if encoded is None else encoded.max_tokens,
        findings=sorted(findings, key=lambda found: ORDER.index(found.severity)),
        advice=advise(facts["train"], horizon) if "train" in facts else [],
        previews=[preview for name, view in views.items() for preview in previews(view, sources[name])],
        notes=list(notes(facts, horizon)),
    )


def _facts(checks: Checks, sources: Mapping[str, int]) -> SplitFacts:
    return checks.facts.result(
        sources,
        checks.labels.table(),
        checks.preferences.pairs(),
        checks.scripts.shares(),
        checks.languages.shares(),
    )


def _findings(
    views: Mapping[str, View], checks: Mapping[str, Checks], facts: Mapping[str, SplitFacts], instruction: Instruction
) -> Iterator[Finding]:
    keys = {name: one.keys for name, one in checks.items()}
    yield from nothing_left(views.values())
    for one in checks.values():
        for check in one.all:
            yield from check.findings()
    yield from label_spellings({name: one.labels for name, one in checks.items()})
    yield from unknown_labels({name: one.labels for name, one in facts.items()})
    yield from foreign(
        {name: one.scripts for name, one in facts.items()}, {name: one.languages for name, one in facts.items()}
    )
    yield from copies(views, keys)
    yield from near_copies(views, keys, instruction)
    yield from small(views.values())
    for name in views:
        yield from repeated(views[name], keys[name], facts[name].labels)
