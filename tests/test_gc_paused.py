import gc

import pytest

from raytune_llm.cluster import gc_paused


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_inside_and_what_was_made_is_not_looked_through_again():
    gc.collect()
    frozen = gc.get_freeze_count()
    before = gc.get_stats()
    with gc_paused():
        kept = [Cycle() for _ in range(10_000)]
        assert [of["collections"] for of in gc.get_stats()] == [of["collections"] for of in before]
    assert gc.get_freeze_count() >= frozen + len(kept)
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_the_collector_is_as_it_was(enabled):
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(KeyError), gc_paused():
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
        gc.unfreeze()
