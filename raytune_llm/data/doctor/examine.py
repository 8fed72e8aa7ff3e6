"""Statistics of a job's data, and what in them would spoil the result.

One pass over the records of each split feeds all checks of records; what compares splits works on their keys.
Everything is counted over parsed records and their encoded examples; whether the texts are true or fair is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from raytune_llm.data.doctor.advice import DEFAULT_HORIZON, Horizon, advise, notes
from raytune_llm.data.doctor.diagnosis import Diagnosis
from raytune_llm.data.doctor.duplicates import repeated
from raytune_llm.data.doctor.facts import Facts, weights_of
from raytune_llm.data.doctor.instruction import Instruction, find_instruction
from raytune_llm.data.doctor.keys import Keys
from raytune_llm.data.doctor.labels import Labels, unknown_labels
from raytune_llm.data.doctor.lacking import Lacking, small
from raytune_llm.data.doctor.language import Scripts, foreign
from raytune_llm.data.doctor.leakage import copies, near_copies
from raytune_llm.data.doctor.preferences import Preferences
from raytune_llm.data.doctor.preview import Previews
from raytune_llm.data.doctor.results import SplitFacts
from raytune_llm.data.doctor.secrets import Secrets
from raytune_llm.data.doctor.texts import Texts
from raytune_llm.data.doctor.tools import ToolCalls
from raytune_llm.data.doctor.truncation import Cuts, nothing_left
from raytune_llm.data.doctor.view import Check, View
from raytune_llm.data.encoding.encode import EncodedSplits
from raytune_llm.data.files import Splits
from raytune_llm.data.findings import Finding, Severity

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens

ORDER = (Severity.problem, Severity.warning, Severity.note)


@dataclass(frozen=True)
class Examined:
    """A split, and its checks after the last record."""

    view: View
    facts: Facts
    keys: Keys
    labels: Labels
    preferences: Preferences
    scripts: Scripts
    previews: Previews
    others: tuple[Check, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them, in the order of the report."""
        return (*self.others, self.labels, self.preferences, self.facts, self.keys, self.scripts, self.previews)


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
    examined = {name: _examined(view, instruction, sources[name]) for name, view in views.items()}
    facts = {name: _facts(one, sources[name]) for name, one in examined.items()}
    if "train" in facts:
        facts["train"] = replace(facts["train"], weights=weights_of(splits.origins.get("train")))
    findings = [*_findings(examined, instruction), *more]
    if strict:
        findings = [replace(f, severity=Severity.problem) if f.severity is Severity.warning else f for f in findings]
    return Diagnosis(
        splits=facts,
        carved=splits.carved,
        max_tokens=None if encoded is None else encoded.max_tokens,
        findings=sorted(findings, key=lambda found: ORDER.index(found.severity)),
        advice=advise(facts["train"], horizon) if "train" in facts else [],
        previews=[preview for one in examined.values() for preview in one.previews.found],
        notes=list(notes(facts, horizon)),
    )


def _examined(view: View, instruction: Instruction, sources: Mapping[str, int]) -> Examined:
    others = (Cuts(view, instruction), Lacking(view), Texts(view), ToolCalls(view), Secrets(view))
    one = Examined(
        view, Facts(view), Keys(), Labels(view), Preferences(view), Scripts(view), Previews(view, sources), others
    )
    see: list[Callable[..., None]] = [check.see for check in one.checks]
    for seen in view:
        for look in see:
            look(seen)
    return one


def _facts(one: Examined, sources: Mapping[str, int]) -> SplitFacts:
    return one.facts.result(sources, one.labels.table(), one.preferences.pairs(), one.scripts.shares())


def _findings(examined: Mapping[str, Examined], instruction: Instruction) -> Iterator[Finding]:
    views = {name: one.view for name, one in examined.items()}
    keys = {name: one.keys for name, one in examined.items()}
    yield from nothing_left(views.values())
    yield from _of_records(examined.values())
    yield from unknown_labels({name: one.labels.table() for name, one in examined.items()})
    yield from foreign({name: one.scripts.shares() for name, one in examined.items()})
    yield from copies(views, keys)
    yield from near_copies(views, keys, instruction)
    yield from small(views.values())
    for name in views:
        yield from repeated(views[name], keys[name])


def _of_records(examined: Iterable[Examined]) -> Iterator[Finding]:
    for one in examined:
        for check in one.checks:
            yield from check.findings()
