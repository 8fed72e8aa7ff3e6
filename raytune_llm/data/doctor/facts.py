"""One split in numbers: records, texts, tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from raytune_llm.data.doctor.results import Histogram, Lengths, Pairs, SplitFacts
from raytune_llm.data.doctor.view import Check, Seen, View, printable
from raytune_llm.data.origins import Origins
from raytune_llm.data.tables.example_table import ExampleTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

EDGES = (1, *(edge for power in range(1, 21) for edge in (1 << power, 3 << (power - 1))))
"""1, 2, 3, 4, 6, 8, 12, 16, 24 …: half an octave a bin."""
ROWS = 1 << 16
"""Examples whose lengths are read at once."""


class Facts(Check):
    """Counts everything that is reported without a judgement."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._kinds, self._num_bytes = Counter[str](), 0

    def see(self, seen: Seen) -> None:
        self._kinds[type(seen.record).__name__] += 1
        text = seen.text
        self._num_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def merge(self, later: Facts) -> None:
        self._kinds.update(later._kinds)
        self._num_bytes += later._num_bytes

    def result(
        self,
        sources: Mapping[str, int],
        labels: dict[str, int] | None,
        pairs: Pairs | None,
        scripts: dict[str, float],
        languages: dict[str, float],
    ) -> SplitFacts:
        """All that was counted, with what others counted."""
        encoded = self._view.encoded
        prompts, completions = self._num_tokens()
        return SplitFacts(
            num_records=len(self._view.records),
            kinds=dict(self._kinds),
            sources={printable(name): count for name, count in sources.items()},
            num_bytes=self._num_bytes,
            prompt_tokens=None if encoded is None else lengths_of(prompts),
            completion_tokens=None if encoded is None else lengths_of(completions),
            truncation=None if encoded is None else encoded.truncation,
            labels=labels,
            pairs=pairs,
            scripts=scripts,
            languages=languages,
        )

    def _num_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens without and with loss of each sequence that has any with, (n,) both."""
        examples = () if self._view.encoded is None else self._view.encoded.examples
        prompts, completions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for first in range(0, len(examples), ROWS):
            for column in ExampleTable.of(examples[first : first + ROWS]).columns.values():
                num_labels = column.num_labels()
                before = column.ids.lengths - (0 if self._view.is_encoder_decoder else num_labels)
                prompts.append(before[num_labels > 0])
                completions.append(num_labels[num_labels > 0])
        return np.concatenate(prompts), np.concatenate(completions)


def weights_of(origins: Origins | None) -> dict[str, float]:
    """SplitFacts.weights of a split; the mean of a source that is named several times."""
    given: dict[str, list[float]] = {}
    for file in () if origins is None else origins.files:
        given.setdefault(printable(file.path), []).append(file.weight)
    means = {name: sum(weights) / len(weights) for name, weights in given.items()}
    return {name: mean for name, mean in means.items() if mean != 1}


def lengths_of(lengths: NDArray[np.int64]) -> Lengths:
    """Percentiles, total and histogram."""
    ordered: list[int] = np.sort(lengths).tolist()
    if not ordered:
        return Lengths(0, 0, 0, 0, Histogram((), ()))
    last = len(ordered) - 1
    return Lengths(
        median=ordered[last // 2],
        most=ordered[round(last * 0.95)],
        longest=ordered[-1],
        total=sum(ordered),
        histogram=histogram_of(ordered),
    )


def histogram_of(ordered: list[int]) -> Histogram:
    """Counts in bins of half an octave, from the shortest's bin to the longest's."""
    edges = (0, *EDGES, max(ordered[-1], EDGES[-1]) + 1)
    first, last = bisect_right(edges, ordered[0]) - 1, bisect_right(edges, ordered[-1]) - 1
    counts = Counter(bisect_right(edges, length) - 1 for length in ordered)
    return Histogram(edges[first : last + 2], tuple(counts[i] for i in range(first, last + 1)))
