"""How many slots go through the model at once, found by timing real steps.

    seconds of a step = a · passes + b · padded tokens

Packing gains where a, the cost of a pass itself, is large, and nothing where matmuls already saturate or caches
overflow. Steps with k = 1 slot a pass, then with all, a half, a quarter … of them are timed until they get slower; if
the best gains under 5 %, trials go one after another (k = 1) on the warm base. Now and then one step goes to another
k, so that a choice made while the machine was busy doesn't last. Every timed step is a real one: how a step is cut
changes no result. Out of memory, the pack halves its cut and the planner keeps below it.

a / b weighs padding against passes (batching.py). Steps say little of it, because the numbers of passes and of tokens
change with k together; so beside each timed step two passes are rehearsed, of one example and of a few, and the fastest
of each tell it.
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
FIRST_VISITS = 2
"""Timed steps at each k before a choice; the fastest counts."""
KEPT_VISITS = 8
REVISIT_STEPS = 32
"""Steps between two looks at another k."""
FIRST_OVERHEAD_TOKENS = 128
REHEARSED_ROWS = 8
"""At most, in the larger of two rehearsed passes."""


class Planner:
    """Steps a pack and chooses its cut. `say` receives one line at each choice; `clock` gives seconds."""

    def __init__(
        self,
        pack: Pack,
        *,
        max_tokens: int,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pack, self._say, self._clock = pack, say, clock
        self._max_tokens, self._overhead_tokens = max_tokens, FIRST_OVERHEAD_TOKENS
        self._timings: dict[int, deque[float]] = {}
        """Of timed steps with so many slots a pass: seconds for each of their own (unpadded) tokens."""
        self._rehearsed: dict[int, float] = {}
        """Seconds of the fastest pass of so many padded tokens."""
        self._ceiling = 1 << (pack.capacity - 1).bit_length()
        self._chosen: int | None = None
        self._num_steps = 0

    def step(self) -> dict[str, StepReport]:
        """One step of every slot, cut as is best so far."""
        at_once, is_visit = self._next(len(self.pack.trial_ids))
        cut = PassBudget(at_once, self._max_tokens, self._overhead_tokens)
        self.pack.cut = cut
        start = self._clock()
        reports = self.pack.step()
        seconds = self._clock() - start
        if self.pack.cut != cut:
            self._shrink()
        elif is_visit and self._num_steps > 0:
            tokens = sum(report.num_tokens for report in reports.values())
            self._timings.setdefault(at_once, deque(maxlen=KEPT_VISITS)).append(seconds / tokens)
            self._rehearse()
        self._num_steps += 1
        return reports

    def describe(self) -> str:
        """The choice in one line."""
        if self._chosen is None:
            return "packing: still timing"
        how = "one trial after another" if self._chosen == 1 else f"{self._chosen} trials a pass"
        gain = ""
        if self._chosen > 1:
            gain = f", {self._seconds(1) / self._seconds(self._chosen):.2f}× as fast as one after another"
        kept = ", activations recomputed" if self.pack.checkpointing else ""
        return (
            f"packing: {how}{gain}; at most {self._max_tokens} tokens a pass, "
            f"whose own cost is that of {self._overhead_tokens}{kept}"
        )

    def _next(self, count: int) -> tuple[int, bool]:
        """(slots of a pass in the coming step of so many slots, whether it is to be timed)."""
        candidates = self._candidates(count)
        for position, at_once in enumerate(candidates if count > 1 else ()):
            if self._slows_down(candidates[:position]):
                break
            if len(self._timings.get(at_once, ())) < FIRST_VISITS:
                return at_once, True
        timed = [at_once for at_once in candidates if at_once in self._timings]
        best = min(timed, key=self._seconds, default=1)
        if self._chosen in timed and self._seconds(self._chosen) <= CLEARLY_SLOWER * self._seconds(best):
            best = self._chosen
        if best > 1 and self._seconds(1) < SMALLEST_GAIN * self._seconds(best):
            best = 1
        if best != self._chosen:
            self._chosen = best
            self._say(self.describe())
        if self._num_steps % REVISIT_STEPS == 0 and count > 1:
            return candidates[self._num_steps // REVISIT_STEPS % len(candidates)], True
        return best, False

    def _candidates(self, count: int) -> list[int]:
        """1, then all of so many slots (rounded up to a power of two), a half, a quarter … of them."""
        most = min(1 << (count - 1).bit_length(), self._ceiling)
        return [1, *(1 << power for power in range(most.bit_length() - 1, 0, -1))]

    def _slows_down(self, timed: list[int]) -> bool:
        """Whether the last of these was slower than the one before it, of those that share passes."""
        return len(timed) > 2 and self._seconds(timed[-1]) > CLEARLY_SLOWER * self._seconds(timed[-2])

    def _rehearse(self) -> None:
        """Bring a / b up to date, where more than one example fits into a pass."""
        for num_rows in (1, min(REHEARSED_ROWS, self._max_tokens // self.pack.longest)):
            start = self._clock()
            tokens = self.pack.rehearse(max(1, num_rows))
            seconds = self._clock() - start
            self._rehearsed[tokens] = min(seconds, self._rehearsed.get(tokens, seconds))
        few, many = min(self._rehearsed), max(self._rehearsed)
        if few < many:
            a_token = (self._rehearsed[many] - self._rehearsed[few]) / (many - few)
            a_pass = self._rehearsed[few] - a_token * few
            costly = a_token * self._max_tokens <= a_pass
            self._overhead_tokens = self._max_tokens if costly else max(0, round(a_pass / a_token))

    def _shrink(self) -> None:
        """Take over what the pack halved when it ran out of memory."""
        self._max_tokens, self._ceiling = self.pack.cut.max_tokens, self.pack.cut.slots_per_pass
        for at_once in [at_once for at_once in self._timings if at_once > self._ceiling]:
            del self._timings[at_once]
        self._chosen = None
        self._say(f"packing: out of memory; now at most {self._ceiling} trials and {self._max_tokens} tokens a pass")

    def _seconds(self, at_once: int) -> float:
        """Of the fastest step."""
        return min(self._timings[at_once])
