"""A judgement as people read it: tables of a report, lines for the terminal, warnings, plain values for JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.data.findings import many
from raytune_llm.evaluation.compare import Comparison, compare, number, verdict_kind
from raytune_llm.evaluation.judging import tally
from raytune_llm.evaluation.judging.asking import Judgement, Usage
from raytune_llm.evaluation.judging.pairs import CHOSEN, REJECTED, Judged
from raytune_llm.evaluation.judging.tally import Agreement, OrderBias, Share
from raytune_llm.evaluation.metrics import ratio

WIN_RATE = "eval/win_rate"
MOST_DISAGREEMENTS = 0.3
"""Share of pairs with another verdict in the other order, from which on verdicts say little."""
LONGEST_SHOWN = 200
NAMES = {
    "identical_answers": "ties: identical answers",
    "orders_disagree": "ties: the orders disagree",
    "no_verdict": "no verdict",
}


@dataclass(frozen=True)
class Match:
    """Two systems against each other."""

    system: str
    other: str
    judged: list[Judged]
    comparison: Comparison | None
    """Of the win rates; None without any verdict."""

    @property
    def title(self) -> str:
        return f"{self.system} against {self.other}"

    @property
    def verdict(self) -> str:
        """better, worse … or 'no verdict'."""
        found = None if self.comparison is None else verdict_kind(self.comparison.difference(WIN_RATE))
        return "no verdict" if found is None else found.value


@dataclass(frozen=True)
class JudgeReport:
    """All that a judge's verdicts add up to."""

    name: str
    judgement: Judgement
    matches: list[Match]
    bias: OrderBias
    labels: Agreement
    people: Agreement

    def lines(self) -> list[str]:
        """For the terminal, warnings last."""
        lines = [self._sentence(match) for match in self.matches]
        if self.labels.agrees.of:
            lines.append(f"prefers the right answer in {_share(self.labels.agrees)}")
        if self.people.agrees.of:
            lines.append(f"agrees with people in {_share(self.people.agrees)}")
        return [*lines, usage_text(self.judgement.usage), *(f"! {warning}" for warning in self.warnings())]

    def warnings(self) -> list[str]:
        """Reasons not to rely on the verdicts."""
        found = [] if self.judgement.ended is None else [f"judging ended early: {self.judgement.ended}"]
        found += [] if (missing := self._missing()) is None else [missing]
        bias = self.bias
        if bias.is_biased:
            place = "first" if bias.first.value > 0.5 else "second"
            found.append(
                f"the judge is biased by order: where its two verdicts disagree it favours the answer shown {place} "
                f"({bias.first.count} of {bias.first.of} favour the first, p = {bias.p_value:.2g}); "
                "those pairs count as ties"
            )
        if bias.disagreements.of and bias.disagreements.value > MOST_DISAGREEMENTS:
            found.append(
                f"the verdict changes with the order of the answers in {_share(bias.disagreements)}: "
                "this judge hardly tells them apart"
            )
        for agreement, what in ((self.labels, "the right answer"), (self.people, "what people chose")):
            if agreement.num_against > agreement.agrees.count:
                found.append(
                    f"the judge decides more often against {what} than for it: "
                    f"{agreement.num_against} against {agreement.agrees.count}"
                )
        return found

    def tables(self) -> dict[str, list[list[str]]]:
        """For a report, by their titles."""
        warnings = ([f"warning {i}", text] for i, text in enumerate(self.warnings(), start=1))
        trust = [["", self.name], *self._trust(), *warnings]
        return {"Judge": self._match_rows(), "Judge: how far to trust it": trust}

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "judge": self.name,
            "matches": [self._match_json(match) for match in self.matches],
            "order_bias": {**_values(self.bias), "is_biased": self.bias.is_biased},
            "agreement_with_labels": _values(self.labels),
            "agreement_with_people": _values(self.people),
            "usage": dataclasses.asdict(self.judgement.usage),
            "malformed": self.judgement.malformed,
            "failures": self.judgement.failures,
            "ended": self.judgement.ended,
            "warnings": self.warnings(),
        }

    def _match_json(self, match: Match) -> dict[str, Any]:
        rate = None if match.comparison is None else match.comparison.metrics[WIN_RATE][match.system]
        return {
            "system": match.system,
            "other": match.other,
            **_tallied(match.judged),
            "win_rate": None if rate is None else dataclasses.asdict(rate),
            "verdict": match.verdict,
        }

    def _sentence(self, match: Match) -> str:
        counted = _tallied(match.judged)
        text = f"{match.title}: wins {counted['wins']}, ties {counted['ties']}, losses {counted['losses']}"
        return text + ("" if match.comparison is None else f", win rate {_rate(match)} ({match.verdict})")

    def _match_rows(self) -> list[list[str]]:
        tallied = [_tallied(match.judged) for match in self.matches]
        rows = [["", *(match.title for match in self.matches)]]
        rows += [[NAMES.get(name, name), *(str(counted[name]) for counted in tallied)] for name in tallied[0]]
        rows.append(["win rate", *("-" if match.comparison is None else _rate(match) for match in self.matches)])
        return [*rows, ["verdict", *(match.verdict for match in self.matches)]]

    def _trust(self) -> list[list[str]]:
        bias, labels, people = self.bias, self.labels, self.people
        rows = [["verdict changes with the order", _share(bias.disagreements)]]
        rows.append(["favours the answer shown first", f"{_share(bias.first)}, p = {bias.p_value:.2g}"])
        if labels.agrees.of:
            rows.append(["prefers the right answer", f"{_share(labels.agrees)}; {_others(labels)}"])
        if labels.kappa is not None:
            rows.append(["Cohen's kappa with the labels", f"{labels.kappa:.2f} (win, tie, loss)"])
        if people.agrees.of:
            rows.append(["agrees with people", f"{_share(people.agrees)}; {_others(people)}"])
        usage = self.judgement.usage
        rows.append(["cost", usage_text(usage)])
        return rows

    def _missing(self) -> str | None:
        """A sentence about pairs without verdict, with an example."""
        judgement = self.judgement
        missing = sum(one.score is None for one in judgement.judged)
        if not missing:
            return None
        parts = [f"{missing} of {many(len(judgement.judged), 'pair')} {'has' if missing == 1 else 'have'} no verdict"]
        if judgement.malformed:
            reply = " ".join(judgement.malformed[0].split())[:LONGEST_SHOWN]
            count = many(len(judgement.malformed), "conversation")
            parts.append(f"{count} without a reply that can be read, such as {json.dumps(reply)}")
        if judgement.failures and judgement.ended is None:
            parts.append(f"{many(len(judgement.failures), 'request')} failed, such as: {judgement.failures[0]}")
        return "; ".join(parts)


def report_of(
    name: str,
    judgement: Judgement,
    *,
    num_examples: int,
    are_labels: bool,
    num_draws: int,
    seed: int,
) -> JudgeReport:
    """Count the verdicts. num_examples: prompts that are compared; num_draws: of the bootstrap."""
    judged = judgement.judged
    people = tally.between(judged, CHOSEN, REJECTED)
    own = [one for one in judged if one not in people]
    names = list(dict.fromkeys((one.pair.system, one.pair.other) for one in own))
    matches = [_match(*both, tally.between(own, *both), num_examples, num_draws, seed) for both in names]
    return JudgeReport(
        name,
        judgement,
        matches,
        tally.order_bias(judged),
        tally.agreement_with_labels(own, are_labels=are_labels),
        tally.agreement_with_people(people),
    )


def usage_text(usage: Usage, *, at_most: bool = False) -> str:
    """What was, or may be, asked and paid."""
    about, most = ("about ", "at most ") if at_most else ("", "")
    cost = "cost not known (prices are null)" if usage.usd is None else f"{most}${usage.usd:.4f}"
    asked = f"{many(usage.num_requests, 'request')} ({usage.num_cached} more cached)"
    prompt, completion = (
        f"{about}{usage.num_prompt_tokens:,} prompt",
        f"{most}{usage.num_completion_tokens:,} completion",
    )
    return f"{asked}, {prompt} and {completion} tokens, {cost}"


def _match(system: str, other: str, judged: list[Judged], num_examples: int, num_draws: int, seed: int) -> Match:
    metric = tally.outcome_metric(judged, num_examples)
    if not metric.statistics[:, 1].any():
        return Match(system, other, judged, None)
    sums, weights = metric.statistics.T
    against = {WIN_RATE: ratio(weights - sums, weights, metric.better)}
    both = {other: against, system: {WIN_RATE: metric}}
    return Match(system, other, judged, compare(both, num_draws=num_draws, seed=seed))


def _tallied(judged: Sequence[Judged]) -> dict[str, int]:
    scores = tally.counts(judged)
    return {
        "prompts": len(judged),
        "wins": scores[1.0],
        "ties": scores[0.5],
        "identical_answers": sum(not one.asked for one in judged),
        "orders_disagree": sum(one.disagrees for one in judged),
        "losses": scores[0.0],
        "no_verdict": scores[None],
    }


def _rate(match: Match) -> str:
    assert match.comparison is not None
    found = match.comparison.metrics[WIN_RATE][match.system]
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def _share(share: Share) -> str:
    if not share.of:
        return "0 of 0"
    low, high = share.interval
    return f"{share.count} of {share.of} ({100 * share.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}])"


def _others(agreement: Agreement) -> str:
    return f"{agreement.num_ties} ties, {agreement.num_against} against"


def _values(found: OrderBias | Agreement) -> dict[str, Any]:
    return dataclasses.asdict(found)
