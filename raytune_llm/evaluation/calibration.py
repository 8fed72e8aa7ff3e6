"""Is a reward model as sure as it is right? Expected calibration error (Naeini et al., 2015; Guo et al., 2017, arXiv
1706.04599) of the probability that it gives to the answer it prefers.

    confidence of a pair = σ(|margin|), from 0.5 to 1        error = Σ_bins |Σ (confidence − right)| / number of pairs

The sums over a bin are sums over examples, so the error can be computed again on any resample.
"""

from __future__ import annotations

import numpy as np

from raytune_llm.evaluation.metrics import Array, Metric
from raytune_llm.evaluation.terms import Better

NUM_BINS = 5


def calibration_error(margins: Array) -> Metric:
    """Expected calibration error, 0 to 1. margins: score(chosen) − score(rejected), (n,)."""
    bins, confidence, right = _binned(margins)
    statistics = np.append(bins * (confidence - right)[:, None], np.ones((len(margins), 1)), 1)
    return Metric(statistics, _error, Better.lower)


def reliability(margins: Array) -> list[list[str]]:
    """The table behind it: of the pairs with like confidence, how many there are and the share that is right."""
    bins, confidence, right = _binned(margins)
    rows = [["confidence", "pairs", "mean confidence", "right"]]
    for index, members in enumerate(bins.T.astype(bool)):
        low, high = (0.5 + 0.5 * edge / NUM_BINS for edge in (index, index + 1))
        means = [f"{values[members].mean():.3f}" if members.any() else "" for values in (confidence, right)]
        rows.append([f"{low:.1f} to {high:.1f}", str(int(members.sum())), *means])
    return rows


def _binned(margins: Array) -> tuple[Array, Array, Array]:
    """Membership in the bins of confidence (n, NUM_BINS), confidence (n,), whether the pair is right (n,); a tie is
    half right."""
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1) / 2
    index = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    return np.eye(NUM_BINS)[index], confidence, right


def _error(totals: Array) -> Array:
    """Summed statistics (…, NUM_BINS + 1), the last one the number of pairs."""
    return np.abs(totals[..., :-1]).sum(-1) / totals[..., -1]
