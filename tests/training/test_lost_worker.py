"""What a job says when Ray's workers are gone for good, and that other errors pass."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError

from raytune_llm.errors import InputError, causes, first_input_error
from raytune_llm.training.ray_train import explain_lost_worker

FULL = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nTop 10 memory users: …")


@pytest.mark.parametrize("error", [ControllerError(FULL), WorkerGroupError("rank 0", {0: FULL}), FULL])
def test_memory_that_ran_out_names_the_key_that_takes_less(error):
    message = (
        r"max_failures=2 allows no further start: .*running low on memory\. The same command with run=one resumes "
        r"from its last checkpoint, a smaller tuning\.micro_batch_size takes less memory$"
    )
    with pytest.raises(InputError, match=message), explain_lost_worker("one", max_failures=2):
        raise error


def test_a_worker_that_died_names_the_run():
    message = r"died unexpectedly before finishing this task\. The same command with run=one resumes .* checkpoint$"
    with pytest.raises(InputError, match=message), explain_lost_worker("one", max_failures=0):
        raise ControllerError(ActorDiedError())


@pytest.mark.parametrize("fault", [ValueError("nan"), InputError("data.train: bad")])
def test_a_fault_is_not_hidden_by_the_workers_that_died_of_it(fault):
    error = WorkerGroupError("two ranks", {0: ActorDiedError(), 1: fault})
    with pytest.raises(WorkerGroupError), explain_lost_worker("one", max_failures=0):
        raise error


def test_what_is_explained_already_stays_as_it_is():
    with pytest.raises(InputError, match="no space left"), explain_lost_worker("one", max_failures=0):
        raise InputError("no space left") from ActorDiedError()


def test_causes_that_are_each_others_are_named_once():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second] and first_input_error(first) is None
