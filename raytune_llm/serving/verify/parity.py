"""Nothing is served unproven: does what is served answer as PEFT does, and not as the base?

For each probe prompt the greedy answer equals `generate` of the version loaded by itself, the log-probabilities agree
at every position, and at least one probe tells the version from its base. In half precision near-ties may fall either
way, so there the first position alone is compared. endpoint_proof.py asks an endpoint over HTTP, load_proof.py an
engine that has just loaded a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.data.records import Message, Text
from raytune_llm.serving.verify.reference import Greedy
from raytune_llm.stores.card import Version

TOLERANCE_NATS = {"torch.float64": 1e-4, "torch.float32": 1e-4, "torch.bfloat16": 0.1, "torch.float16": 0.02}
"""Largest difference between two honest computations of one log-probability, by dtype."""
EXACT_NATS = 1e-3
"""Dtypes with a smaller tolerance give the same greedy answers however they are computed."""
PROBES = ("The", "Is it a good idea?", "One, two, three")
"""For versions whose card holds no probe."""


class ParityError(RuntimeError):
    """What is served does not answer as the tuned version does."""


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """What was seen of one version."""

    model: str
    num_probes: int
    from_reference: float
    """Largest difference of served and reference log-probabilities, nats."""
    from_base: float
    """Largest difference of the version's and the base's, nats."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe."""

    probe: Text
    answer: Greedy
    """What is served."""
    expected: Greedy
    """The reference's."""
    from_base: float
    """How far the reference is from the base, nats."""


def probes(version: Version) -> list[Text]:
    """The prompts by which a version is proven: those of its card, or a few plain ones."""
    kept = [
        probe if isinstance(probe, str) else tuple(Message(**turn) for turn in probe) for probe in version.card.probes
    ]
    return kept or list(PROBES)


def check_parity(model: str, place: str, seen: Sequence[ProbeResult], dtype: str) -> ParityResult:
    """The proof of a version. Raises ParityError naming it, the place, the probe and what differed."""
    if not seen:
        raise ValueError("nothing can be proven without a probe; give a few prompts")
    tolerance = TOLERANCE_NATS[dtype]
    is_exact = tolerance < EXACT_NATS
    from_reference = 0.0
    for one in seen:
        from_reference = max(from_reference, _first_off(model, place, one, tolerance))
        if is_exact:
            from_reference = max(from_reference, _rest_off(model, place, one, tolerance))
    from_base = max(one.from_base for one in seen)
    if from_base <= 2 * tolerance:
        raise ParityError(
            f"{model} can't be told from its base: over {len(seen)} probes its log-probabilities differ by "
            f"{from_base:.2g} nats at most; it was hardly tuned, or its adapter is not applied"
        )
    return ParityResult(model=model, num_probes=len(seen), from_reference=from_reference, from_base=from_base)


def _first_off(model: str, place: str, one: ProbeResult, tolerance: float) -> float:
    return _off(model, place, one, 0, tolerance) if one.answer.tops and one.expected.tops else 0.0


def _rest_off(model: str, place: str, one: ProbeResult, tolerance: float) -> float:
    if one.answer.text != one.expected.text:
        raise ParityError(
            f"{model}{place} answers {one.answer.text!r} to {_short(one.probe)}; "
            f"the reference, PEFT's generate, {one.expected.text!r}"
        )
    both = min(len(one.answer.tops), len(one.expected.tops))
    return max([_off(model, place, one, position, tolerance) for position in range(1, both)], default=0.0)


def _off(model: str, place: str, one: ProbeResult, position: int, tolerance: float) -> float:
    """How far the told log-probabilities are from any of the reference's at that position."""
    expected = one.expected.tops[position]
    off = max((min(abs(told - true) for true in expected) for told in one.answer.tops[position]), default=0.0)
    if off > tolerance:
        where = f"after {_short(one.probe)}" + (f" and {position} tokens of the answer" if position else "")
        raise ParityError(
            f"{model}{place} is not what was tuned: {where} its log-probabilities are {off:.2g} nats off PEFT's "
            f"(allowed: {tolerance:g})"
        )
    return off


def _short(probe: Text) -> str:
    text = probe if isinstance(probe, str) else probe[-1].content
    return repr(text if len(text) <= 60 else text[:57] + "…")
