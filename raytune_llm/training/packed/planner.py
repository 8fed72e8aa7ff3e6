"""How many slots go through the model at once, chosen by timing real steps.

    seconds of a step = a · passes + b · padded tokens

Packing gains where a, the fixed cost of a pass, is large, and nothing where matmuls already saturate or caches
overflow. Steps with k = 1 slot per pass, then with all, a half, a quarter … of them are measured until they get slower;
if the best gains under 5 %, trials run one after another (k = 1) on the warm base. Now and then another k is measured
again, so that a choice made while the machine was busy doesn't last. Every measured step is a real one: how a step is
split changes no result. Out of memory, the pack halves its budget and the planner stays below it.

a / b weighs padding against passes (batches.py). Steps show little of it, because the numbers of passes and of tokens
change with k together; so each measured step is followed by two probes, passes of one example and of a few, and a / b
comes from the fastest of each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from raytune_llm.training.packed.batches import PassBudget
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.slot import StepReport

SMALLEST_GAIN = 1.05
"""Packing that gains less isn't worth it."""
CLEARLY_SLOWER = 1.02
FIRST_MEASURES = 2
"""Measured steps at each k before a choice; the fastest counts."""
KEPT_MEASURES = 8
REMEASURE_STEPS = 32
"""Steps between two measurements of another k."""
FIRST_OVERHEAD_TOKENS = 128
PROBE_ROWS = 8
"""Upper bound, in the larger of two probes."""


class Planner:
    """Steps a pack and chooses its budget. `log` receives one line at each choice; `clock` gives seconds."""

    def __init__(
        self,
        pack: Pack,
        *,
        max_tokens: int,
        log: Callable[[str], None] = print,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pack, self._log, self._clock = pack, log, clock
        self._max_tokens, self._overhead_tokens = max_tokens, FIRST_OVERHEAD_TOKENS
        self._timings: dict[int, deque[float]] = {}
        """Of measured steps, by slots per pass: seconds per own (unpadded) token."""
        self._probes: dict[int, float] = {}
        """Seconds of the fastest probe, by padded tokens."""
        self._ceiling = 1 << (pack.capacity - 1).bit_length()
        self._chosen: int | None = None
        self._num_steps = 0

    def step(self) -> dict[str, StepReport]:
        """One step of every slot, split into passes as is best so far."""
        at_once, is_measured = self._next(len(self.pack.trial_ids))
        budget = PassBudget(at_once, self._max_tokens, self._overhead_tokens)
        self.pack.budget = budget
        start = self._clock()
        reports = self.pack.step()
        seconds = self._clock() - start
        if self.pack.budget != budget:
            self._shrink()
        elif is_measured and self._num_steps > 0:
            tokens = sum(report.num_tokens for report in reports.values())
            self._timings.setdefault(at_once, deque(maxlen=KEPT_MEASURES)).append(seconds / tokens)
            self._probe()
        self._num_steps += 1
        return reports

    def describe(self) -> str:
        """The choice in one line."""
        if self._chosen is None:
            return "packing: still measuring"
        how = "one trial per pass"
        if self._chosen > 1:
            gain = self._seconds(1) / self._seconds(self._chosen)
            how = f"{self._chosen} trials per pass, {gain:.1f}× faster than one at a time"
        kept = "; activations recomputed" if self.pack.checkpointing else ""
        return (
            f"packing: {how}; max tokens per pass {self._max_tokens}; "
            f"pass overhead ≈ {self._overhead_tokens} tokens{kept}"
        )

    def _next(self, count: int) -> tuple[int, bool]:
        """(slots per pass in the next step of so many slots, whether to measure it)."""
        candidates = self._candidates(count)
        for position, at_once in enumerate(candidates if count > 1 else ()):
            if self._slows_down(candidates[:position]):
                break
            if len(self._timings.get(at_once, ())) < FIRST_MEASURES:
                return at_once, True
        measured = [at_once for at_once in candidates if at_once in self._timings]
        best = min(measured, key=self._seconds, default=1)
        if self._chosen in measured and self._seconds(self._chosen) <= CLEARLY_SLOWER * self._seconds(best):
            best = self._chosen
        if best > 1 and self._seconds(1) < SMALLEST_GAIN * self._seconds(best):
            best = 1
        if best != self._chosen:
            self._chosen = best
            self._log(self.describe())
        if self._num_steps % REMEASURE_STEPS == 0 and count > 1:
            return candidates[self._num_steps // REMEASURE_STEPS % len(candidates)], True
        return best, False

    def _candidates(self, count: int) -> list[int]:
        """1, then all of so many slots (rounded up to a power of two), a half, a quarter … of them."""
        most = min(1 << (count - 1).bit_length(), self._ceiling)
        return [1, *(1 << power for power in range(most.bit_length() - 1, 0, -1))]

    def _slows_down(self, measured: list[int]) -> bool:
        """Whether the last of these was slower than the one before it, of those that share passes."""
        return len(measured) > 2 and self._seconds(measured[-1]) > CLEARLY_SLOWER * self._seconds(measured[-2])

    def _probe(self) -> None:
        """Update a / b, where more than one example fits into a pass."""
        for num_rows in (1, min(PROBE_ROWS, self._max_tokens // self.pack.longest)):
            start = self._clock()
            tokens = self.pack.probe(max(1, num_rows))
            seconds = self._clock() - start
            self._probes[tokens] = min(seconds, self._probes.get(tokens, seconds))
        few, many = min(self._probes), max(self._probes)
        if few < many:
            per_token = (self._probes[many] - self._probes[few]) / (many - few)
            per_pass = self._probes[few] - per_token * few
            costly = per_token * self._max_tokens <= per_pass
            self._overhead_tokens = self._max_tokens if costly else max(0, round(per_pass / per_token))

    def _shrink(self) -> None:
        """Adopt the budget that the pack halved when it ran out of memory."""
        self._max_tokens, self._ceiling = self.pack.budget.max_tokens, self.pack.budget.slots_per_pass
        for at_once in [at_once for at_once in self._timings if at_once > self._ceiling]:
            del self._timings[at_once]
        self._chosen = None
        self._log(f"packing: out of memory; now max {self._ceiling} trials and {self._max_tokens} tokens per pass")

    def _seconds(self, at_once: int) -> float:
        """Of the fastest step."""
        return min(self._timings[at_once])
