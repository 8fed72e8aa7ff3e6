"""The replay of recorded curves: it runs, what is stored of the curves agrees with itself, and they are recorded from
real trials."""

import numpy as np
import pytest
import recorded_curves
import search_replay
from recorded_curves import EVERY, SIZES, configurations, load, save, trained
from search_replay import METRICS, SCHEDULERS, SEARCHES, SMALLEST, replayed, settings, tables, through_tune, world


def test_every_search_and_scheduler_is_replayed():
    found = tables(load(), replays=1, trials=SMALLEST)
    assert found.keys() == METRICS.keys()
    for rows in found.values():
        assert len(rows) == len(SEARCHES) * len(SCHEDULERS)
        for cells in rows.values():
            assert cells["regret"] >= 0 and 0 < cells["steps"] <= 1 and 0 <= cells["saved"] < 1


def test_a_whole_sweep_without_stopping_takes_all_steps_and_misses_nothing_it_tried():
    recorded = load()
    result = replayed(recorded, "random", "none", "eval/loss", seed=0, trials=SMALLEST)
    assert result.num_steps == SMALLEST * recorded.steps[-1]
    assert result.num_steps_stopped <= result.num_steps and result.lost >= 0


def test_a_world_is_a_part_of_the_configurations_with_the_costs_of_their_statistics():
    recorded = load()
    found = world(recorded, "eval/loss", seed=1)
    assert len(found.places) == len(recorded.sizes) * search_replay.KEPT_RATES // recorded_curves.RATES_EACH
    place = found.places[0]
    values = recorded.sums[place].sum(-1) / recorded.weights.sum()
    np.testing.assert_allclose(found.costs[place], values)
    size, batch_size, rate = (column[place] for column in (recorded.sizes, recorded.batch_sizes, recorded.rates))
    point = {"tuning.adapter_size": size, "tuning.batch_size": batch_size, search_replay.RATE: rate * 1.0001}
    assert found.nearest(point) == place


def test_curves_are_kept_nearly_as_they_are(tmp_path):
    recorded = load()
    save(tmp_path / "again.npz", recorded)
    again = load(tmp_path / "again.npz")
    for name in ("sizes", "batch_sizes", "rates", "steps", "weights", "sums"):
        np.testing.assert_array_equal(getattr(again, name), getattr(recorded, name))


def test_curves_are_recorded_from_real_trials():
    (size, batch_size, rate), *_ = configurations()
    found = trained([(size, batch_size, 1.0), (max(SIZES), batch_size, 3.0)], 0, steps=2 * EVERY)
    losses = found[..., 0].sum(-1) / found[..., 1].sum(-1)
    assert found.shape[:2] == (2, 2) and rate < 1
    assert (losses[:, 1] < losses[:, 0]).all()


@pytest.mark.slow  # trials of real Ray Tune, a second each
def test_trials_go_through_ray_tune():
    settings.cache_clear()
    found = through_tune(load(), 50)
    assert [cells["trials"] for cells in found] == [50]
