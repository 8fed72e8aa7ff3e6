"""The parity check that every version must pass before it is served: do the served answers match PEFT's, and do they
differ from the base's?

For each probe prompt the greedy answer equals that of `generate` on the version in a model of its own, and the
log-probabilities agree at every position. For at least one probe the version differs from its base.

In half precision near-ties may fall either way, so only the first position is compared there. Two correct computations
differ by the rounding of their hidden states, in single tokens by more than 0.1 nats, and by that of the adapter, which
grows with what it changes. So their root mean square over all probes is bounded, by the tolerance or a share of the
distance from the base. endpoint.py checks an endpoint over HTTP, engine.py an engine that has just loaded a version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.data.records import Message, Text
from raytune_llm.serving.verify.reference import GreedyAnswer
from raytune_llm.stores.card import Version

TOLERANCE_NATS = {"torch.float64": 1e-4, "torch.float32": 1e-4, "torch.bfloat16": 0.1, "torch.float16": 0.02}
"""Largest difference between two correct computations of one log-probability, by dtype."""
SHARE_OF_CHANGE = 0.05
"""In half precision: allowed difference, as a share of what the version changes in its base."""
EXACT_NATS = 1e-3
"""Dtypes with a smaller tolerance give the same greedy answers in every correct computation."""
PROBES = ("The", "Is it a good idea?", "One, two, three")
"""For versions without probes in their card."""


class ParityError(RuntimeError):
    """The served answers are not those of the tuned version."""


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """A passed check of one version; `str` reports it."""

    model: str
    num_probes: int
    reference_difference_nats: float
    """Largest difference of served and reference log-probabilities; in half precision their root mean square."""
    base_difference_nats: float
    """Largest difference of the version's and the base's log-probabilities."""

    def __str__(self) -> str:
        return (
            f"parity check passed: {self.model} matches PEFT on {self.num_probes} probes (log-probabilities within "
            f"{self.reference_difference_nats:.1g} nats; differs from the base by {self.base_difference_nats:.2g})"
        )


@dataclass(frozen=True)
class ProbeResult:
    """One probe."""

    probe: Text
    served: GreedyAnswer
    reference: GreedyAnswer
    base_difference_nats: float
    """Difference of the reference and the base."""


def probes(version: Version) -> list[Text]:
    """The prompts that a version is checked on: those of its card, or the default ones."""
    own = [
        probe if isinstance(probe, str) else tuple(Message(**turn) for turn in probe) for probe in version.card.probes
    ]
    return own or list(PROBES)


def check_parity(model: str, place: str, probed: Sequence[ProbeResult], dtype: str) -> ParityResult:
    """Compare the answers to a version's probes. Raises ParityError naming the version, place, probe and difference."""
    if not probed:
        raise ValueError("a parity check needs at least one probe; got none")
    tolerance = TOLERANCE_NATS[dtype]
    if tolerance < EXACT_NATS:
        difference = max(_largest_difference(model, place, one, tolerance) for one in probed)
    else:
        difference = _rounded_difference(model, place, probed, tolerance)
    base_difference = max(one.base_difference_nats for one in probed)
    if base_difference <= 2 * tolerance:
        raise ParityError(
            f"parity check failed: {model} can't be distinguished from its base: over {len(probed)} probes its "
            f"log-probabilities differ by {base_difference:.2g} nats at most; it was hardly tuned, or its adapter is "
            "not applied"
        )
    return ParityResult(
        model=model,
        num_probes=len(probed),
        reference_difference_nats=difference,
        base_difference_nats=base_difference,
    )


def _rounded_difference(model: str, place: str, probed: Sequence[ProbeResult], tolerance: float) -> float:
    """Root mean square of the differences at the first positions of all probes, nats."""
    compared = [one for one in probed if one.served.tops and one.reference.tops]
    squares = [[value**2 for value in _distances(one, 0)] for one in compared]
    changes = [one.base_difference_nats**2 for one in compared]
    difference = _root_mean([value for each in squares for value in each])
    allowed = max(tolerance, SHARE_OF_CHANGE * _root_mean(changes))
    if difference > allowed:
        worst = max(range(len(compared)), key=lambda i: _root_mean(squares[i]))
        raise _not_what_was_tuned(model, place, compared[worst], 0, _root_mean(squares[worst]), allowed)
    return difference


def _root_mean(squares: Sequence[float]) -> float:
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def _largest_difference(model: str, place: str, one: ProbeResult, tolerance: float) -> float:
    first = _difference(model, place, one, 0, tolerance) if one.served.tops and one.reference.tops else 0.0
    return max(first, _rest_difference(model, place, one, tolerance))


def _rest_difference(model: str, place: str, one: ProbeResult, tolerance: float) -> float:
    if one.served.text != one.reference.text:
        raise ParityError(
            f"parity check failed: {model}{place} answers {one.served.text!r} to {_short(one.probe)}; "
            f"the reference, PEFT's generate, {one.reference.text!r}"
        )
    both = min(len(one.served.tops), len(one.reference.tops))
    return max([_difference(model, place, one, position, tolerance) for position in range(1, both)], default=0.0)


def _difference(model: str, place: str, one: ProbeResult, position: int, tolerance: float) -> float:
    """Largest distance of a served log-probability at that position, nats."""
    difference = max(_distances(one, position), default=0.0)
    if difference > tolerance:
        raise _not_what_was_tuned(model, place, one, position, difference, tolerance)
    return difference


def _distances(one: ProbeResult, position: int) -> list[float]:
    """Of each served log-probability from the reference's of a token with that text, nats; of a token that isn't among
    the reference's, at least."""
    reference = one.reference.tops[position]
    smallest = min(logprob for _, logprob in reference)
    return [
        min((abs(served - true) for other, true in reference if other == text), default=max(0.0, served - smallest))
        for text, served in one.served.tops[position]
    ]


def _not_what_was_tuned(
    model: str, place: str, one: ProbeResult, position: int, difference: float, allowed: float
) -> ParityError:
    where = f"after {_short(one.probe)}" + (f" and {position} tokens of the answer" if position else "")
    return ParityError(
        f"parity check failed: {model}{place} is not what was tuned: {where} its log-probabilities are "
        f"{difference:.2g} nats off PEFT's (allowed: {allowed:.2g})"
    )


def _short(probe: Text) -> str:
    text = probe if isinstance(probe, str) else probe[-1].content
    return repr(text if len(text) <= 60 else text[:57] + "…")
