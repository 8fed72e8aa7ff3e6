"""Expected calibration error against its definition, and on models that are as sure as they are right."""

from itertools import pairwise

import numpy as np
import pytest

from raytune_llm.evaluation.calibration import NUM_BINS, calibration_error, reliability
from raytune_llm.evaluation.terms import Better


def by_hand(margins):
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1, NUM_BINS + 1)
    total = 0.0
    for low, high in pairwise(edges):
        members = (confidence >= low) & ((confidence < high) | (high == 1))
        if members.any():
            right = np.mean(np.where(margins > 0, 1.0, np.where(margins < 0, 0.0, 0.5))[members])
            total += members.mean() * abs(confidence[members].mean() - right)
    return total


def test_it_is_the_weighted_gap_of_the_bins():
    margins = np.random.default_rng(0).normal(0.5, 2.0, 300)
    assert calibration_error(margins).whole() == pytest.approx(by_hand(margins))
    assert calibration_error(margins).better is Better.lower


def test_a_model_that_is_as_sure_as_it_is_right_has_almost_none():
    generator = np.random.default_rng(1)
    sizes = np.abs(generator.normal(0, 2, 20_000))
    signs = np.where(generator.random(20_000) < 1 / (1 + np.exp(-sizes)), 1, -1)
    assert calibration_error(sizes * signs).whole() < 0.02
    assert calibration_error(-5.0 * np.ones(10)).whole() == pytest.approx(1 / (1 + np.exp(-5.0)))
    assert calibration_error(np.zeros(10)).whole() == 0.0


def test_the_table_counts_every_pair_once():
    header, *rows = reliability(np.array([0.0, 0.1, -3.0, 8.0]))
    assert header == ["confidence", "pairs", "mean confidence", "right"]
    assert [int(row[1]) for row in rows] == [2, 0, 0, 0, 2]
    assert rows[0] == ["0.5 to 0.6", "2", "0.512", "0.750"] and rows[1][2:] == ["", ""]
