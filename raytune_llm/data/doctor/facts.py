"""One split in numbers: records, texts, tokens."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping

from raytune_llm.data.doctor.results import Histogram, Lengths, Pairs, SplitFacts
from raytune_llm.data.doctor.view import Seen, View, printable
from raytune_llm.data.examples import IGNORED
from raytune_llm.data.findings import Finding
from raytune_llm.data.origins import Origins

EDGES = (1, *(edge for power in range(1, 21) for edge in (1 << power, 3 << (power - 1))))
"""1, 2, 3, 4, 6, 8, 12, 16, 24 …: half an octave a bin."""


class Facts:
    """Counts everything that is reported without a judgement."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._kinds, self._num_bytes = Counter[str](), 0
        self._prompts, self._completions = array("l"), array("l")
        self._is_encoder_decoder = view.is_encoder_decoder

    def see(self, seen: Seen) -> None:
        self._kinds[type(seen.record).__name__] += 1
        text = seen.text
        self._num_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        for sequence in () if seen.example is None else seen.example.values():
            num_labels = len(sequence.labels) - sequence.labels.count(IGNORED)
            if num_labels:
                self._prompts.append(len(sequence.input_ids) - (0 if self._is_encoder_decoder else num_labels))
                self._completions.append(num_labels)

    def findings(self) -> Iterable[Finding]:
        return ()

    def result(
        self,
        sources: Mapping[str, int],
        labels: dict[str, int] | None,
        pairs: Pairs | None,
        scripts: dict[str, float],
    ) -> SplitFacts:
        """All that was counted, with what others counted."""
        encoded = self._view.encoded
        return SplitFacts(
            num_records=len(self._view.records),
            kinds=dict(self._kinds),
            sources={printable(name): count for name, count in sources.items()},
            num_bytes=self._num_bytes,
            prompt_tokens=None if encoded is None else lengths_of(self._prompts),
            completion_tokens=None if encoded is None else lengths_of(self._completions),
            truncation=None if encoded is None else encoded.truncation,
            labels=labels,
            pairs=pairs,
            scripts=scripts,
        )


def weights_of(origins: Origins | None) -> dict[str, float]:
    """SplitFacts.weights of a split; the mean of a source that is named several times."""
    given: dict[str, list[float]] = {}
    for file in () if origins is None else origins.files:
        given.setdefault(printable(file.path), []).append(file.weight)
    means = {name: sum(weights) / len(weights) for name, weights in given.items()}
    return {name: mean for name, mean in means.items() if mean != 1}


def lengths_of(lengths: Iterable[int]) -> Lengths:
    """Percentiles, total and histogram."""
    ordered = sorted(lengths)
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
