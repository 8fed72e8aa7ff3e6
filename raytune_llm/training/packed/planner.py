"""How many slots go through the model at once, chosen by timing real steps.

    seconds of a step = a · passes + b · padded tokens

Packing gains where a, the fixed cost of a pass, is large, and nothing where matmuls already saturate or caches
overflow. Steps with all k slots in a pass are measured first, then with a half, a quarter … of them until they get
slower, then with one; if the best gains under 5 % over that, trials run one after another (k = 1) on the warm base. A k
for which a and b already predict a step that is clearly slower isn't measured: where a is large, one step of
one slot at a time would cost as much as many packed ones. Now and then the next larger or smaller k is measured
again, so that a choice made while the machine was busy doesn't last, as long as all such measuring took at most 2 % of
the time. Every measured step is a real one: how a step is split changes no result. Out of memory, the pack halves its
passes and the planner stays below that.

a / b weighs padding against passes (batches.py). Steps show little of it, because the numbers of passes and of tokens
change with k together; so each measured step is followed by two probes, passes of one example and of a few, and a and b
come from the fastest of each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from raytune_llm.models.out_of_memory import is_out_of_memory
from raytune_llm.training.packed.batches import PassBudget
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.slot import StepReport

SMALLEST_GAIN = 1.05
"""Packing that gains less isn't worth it."""
CLEARLY_SLOWER = 1.02
HOPELESS = 1.25
"""Predicted to be slower by this factor, a k isn't measured. The prediction leaves out padding and the optimizer, so
it is low."""
FIRST_MEASURES = 2
"""Measured steps at each k before a choice; the fastest counts."""
KEPT_MEASURES = 8
REMEASURE_STEPS = 32
"""Steps between two measurements of another k."""
MEASURING_SHARE = 0.02
"""Of the time, for measuring again."""
FIRST_OVERHEAD_TOKENS = 128
PROBES_EACH = 2
"""Of which the fastest counts."""
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
        self._per_pass = self._per_token = 0.0
        """a and b, seconds; 0 until probes of two sizes have run."""
        self._ceiling = 1 << (pack.capacity - 1).bit_length()
        self._chosen: int | None = None
        self._measured_for = 0
        """The largest k of which the first measurements are done; measuring again has a share of the time."""
        self._num_steps = self._num_tokens = 0
        """Steps so far, and own tokens of the last one."""
        self._seconds_spent = self._seconds_measuring = 0.0
        """In all, and beyond what the chosen k would have taken."""

    def step(self) -> dict[str, StepReport]:
        """One step of every slot, split into passes as is best so far."""
        at_once, is_measured = self._next(len(self.pack.trial_ids))
        budget = PassBudget(at_once, self._max_tokens, self._overhead_tokens)
        self.pack.budget, recomputed = budget, self.pack.checkpointing
        start = self._clock()
        reports = self.pack.step()
        seconds = self._clock() - start
        self._num_tokens = sum(report.num_tokens for report in reports.values())
        self._seconds_spent += seconds
        if self.pack.budget != budget or self.pack.checkpointing != recomputed:
            self._shrink()
        elif is_measured and self._num_steps > 0:
            self._timings.setdefault(at_once, deque(maxlen=KEPT_MEASURES)).append(seconds / self._num_tokens)
            if self._chosen is not None:
                self._seconds_measuring += max(0.0, seconds - self._seconds(self._chosen) * self._num_tokens)
            self._probe()
        self._num_steps += 1
        return reports

    @property
    def is_settled(self) -> bool:
        """Whether it has chosen."""
        return self._chosen is not None

    def describe(self) -> str:
        """The choice in one line."""
        if self._chosen is None:
            return "packing: still measuring"
        how = "one trial per pass"
        if self._chosen > 1:
            gain, about = self._seconds(1) / self._seconds(self._chosen), "" if 1 in self._timings else "about "
            how = f"{self._chosen} trials per pass, {about}{gain:.1f}× faster than one at a time"
        kept = "; activations recomputed" if self.pack.checkpointing else ""
        return (
            f"packing: {how}; max tokens per pass {self._max_tokens}; "
            f"pass overhead ≈ {self._overhead_tokens} tokens{kept}"
        )

    def _next(self, count: int) -> tuple[int, bool]:
        """(slots per pass in the next step of so many slots, whether to measure it)."""
        if count == 1:
            self._choose(1)
            return 1, False
        candidates = self._candidates(count)
        if candidates[0] != self._measured_for:
            unmeasured = self._unmeasured(candidates)
            if unmeasured is not None:
                return unmeasured, True
            self._measured_for = candidates[0]
        measured = [at_once for at_once in candidates if at_once in self._timings]
        best = min(measured, key=self._seconds)
        if self._chosen in measured and self._seconds(self._chosen) <= CLEARLY_SLOWER * self._seconds(best):
            best = self._chosen
        if 1 in measured and self._seconds(1) < SMALLEST_GAIN * self._seconds(best):
            best = 1
        self._choose(best)
        if self._num_steps % REMEASURE_STEPS or self._seconds_measuring > MEASURING_SHARE * self._seconds_spent:
            return best, False
        place = candidates.index(best)
        neighbours = candidates[max(0, place - 1) : place] + candidates[place + 1 : place + 2]
        return neighbours[self._num_steps // REMEASURE_STEPS % len(neighbours)], True

    def _choose(self, at_once: int) -> None:
        if at_once != self._chosen:
            self._chosen = at_once
            self._log(self.describe())

    def _candidates(self, count: int) -> list[int]:
        """All of so many slots (rounded up to a power of two), a half, a quarter … of them, 1."""
        most = min(1 << (count - 1).bit_length(), self._ceiling)
        return [1 << power for power in range(most.bit_length() - 1, -1, -1)]

    def _unmeasured(self, candidates: list[int]) -> int | None:
        """The next of them to measure, or None when the others are known to be slower."""
        shared, timed = candidates[:-1], [at_once for at_once in candidates if at_once in self._timings]
        for position, at_once in enumerate(candidates):
            if at_once > 1 and self._slows_down(shared[:position]):
                continue
            best = min(map(self._seconds, timed), default=0.0)
            if timed and at_once not in timed and self._predicted(at_once) > HOPELESS * best:
                continue
            if len(self._timings.get(at_once, ())) < FIRST_MEASURES:
                return at_once
        return None

    def _slows_down(self, measured: list[int]) -> bool:
        """Whether the last of these was slower than the one before it."""
        timed = [at_once for at_once in measured if at_once in self._timings]
        return len(timed) > 1 and self._seconds(timed[-1]) > CLEARLY_SLOWER * self._seconds(timed[-2])

    def _predicted(self, at_once: int) -> float:
        """Seconds per own token of a step with so many slots per pass, from a and b."""
        num_passes = -(-len(self.pack.trial_ids) // at_once)
        return self._per_token + num_passes * self._per_pass / max(1, self._num_tokens)

    def _probe(self) -> None:
        """Update a and b, where more than one example fits into a pass."""
        for num_rows in (1, min(PROBE_ROWS, self._max_tokens // self.pack.longest)) * PROBES_EACH:
            start = self._clock()
            try:
                tokens = self.pack.probe(max(1, num_rows))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            seconds = self._clock() - start
            self._seconds_spent += seconds
            self._seconds_measuring += seconds if self._chosen is not None else 0.0
            self._probes[tokens] = min(seconds, self._probes.get(tokens, seconds))
        few, many = min(self._probes, default=0), max(self._probes, default=0)
        if few < many:
            self._per_token = (self._probes[many] - self._probes[few]) / (many - few)
            self._per_pass = self._probes[few] - self._per_token * few
            costly = self._per_token * self._max_tokens <= self._per_pass
            self._overhead_tokens = self._max_tokens if costly else max(0, round(self._per_pass / self._per_token))

    def _shrink(self) -> None:
        """Adopt what the pack changed when it ran out of memory, and measure anew."""
        self._max_tokens = self.pack.budget.max_tokens
        self._timings.clear()
        self._chosen, self._measured_for = None, 0
        kept = "; activations recomputed" if self.pack.checkpointing else ""
        self._log(f"packing: out of memory; now max {self._max_tokens} tokens per pass{kept}")

    def _seconds(self, at_once: int) -> float:
        """Per own token, of the fastest step; predicted where none was measured."""
        return min(self._timings[at_once]) if at_once in self._timings else self._predicted(at_once)
