import pytest
import torch

from raytune_llm.models.batches import batches, run_batches
from raytune_llm.models.out_of_memory import is_out_of_memory

LENGTHS = [3, 9, 1, 9, 5, 2, 7]


def test_batches_hold_every_index_once_longest_first():
    made = batches(LENGTHS, 3)
    assert [len(batch) for batch in made] == [3, 3, 1]
    assert sorted(index for batch in made for index in batch) == list(range(7))
    assert [LENGTHS[index] for batch in made for index in batch] == sorted(LENGTHS, reverse=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        batches(LENGTHS, 0)


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(("room", "sizes"), [(100, [4, 3]), (20, [2, 2, 2, 1]), (10, [1] * 7)])
def test_batches_are_halved_until_they_fit_and_nothing_is_lost(room, sizes):
    found, ran = {}, []

    def run(batch):
        for index in batch:
            found[index] = None
        if sum(LENGTHS[index] for index in batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(len(batch))
        found.update({index: LENGTHS[index] for index in batch})

    run_batches(LENGTHS, 4, run)
    assert found == dict(enumerate(LENGTHS)) and ran == sizes


def test_a_single_item_that_does_not_fit_and_other_errors_are_raised():
    def refuse(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run_batches(LENGTHS, 4, refuse)

    def fail(batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_batches(LENGTHS, 4, fail)
