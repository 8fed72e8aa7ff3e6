"""The queue: never more than the limits, and fair to every owner whatever its jobs take."""

import heapq
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from raytune_llm.service.queue import Limits, Waiting, next_job, order

OWNERS = "abc"


def waiting(*jobs):
    return [Waiting(f"{owner}{i}", owner, i) for i, owner in enumerate(jobs)]


def test_the_owner_with_the_fewest_running_jobs_starts_next():
    limits = Limits(4, None)
    assert next_job(waiting("a", "b"), {"a": 1}, {}, limits).id == "b1"
    assert next_job(waiting("a", "b"), {"a": 1, "b": 2}, {}, limits).id == "a0"


def test_of_equals_the_one_that_waited_longest():
    limits = Limits(4, None)
    assert next_job(waiting("a", "b", "c"), {}, {"a": 9.0, "b": 3.0}, limits).id == "c2"
    assert next_job(waiting("a", "b"), {}, {"a": 9.0, "b": 3.0}, limits).id == "b1"
    assert next_job(waiting("a", "a"), {}, {"a": 9.0}, limits).id == "a0"


def test_limits_in_all_and_of_an_owner():
    assert next_job(waiting("a"), {"b": 2}, {}, Limits(2, None)) is None
    assert next_job(waiting("a"), {"a": 1}, {}, Limits(2, 1)) is None
    assert next_job(waiting("a", "b"), {"a": 1}, {}, Limits(2, 1)).id == "b1"
    assert next_job([], {}, {}, Limits(2, 1)) is None


def test_places_take_turns_and_owners_at_their_limit_come_last():
    found = order(waiting("a", "a", "a", "b", "c"), {}, {}, Limits(1, None))
    assert found == ["a0", "b3", "c4", "a1", "a2"]
    assert order(waiting("a", "b", "b"), {"a": 1}, {}, Limits(3, 1)) == ["b1", "a0", "b2"]


@given(
    st.lists(st.tuples(st.sampled_from(OWNERS), st.floats(0.1, 100)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
)
@settings(deadline=None)
def test_no_owner_starves(jobs, in_all, per_owner):
    """While an owner waits and runs nothing, each other owner starts at most once."""
    limits = Limits(in_all, per_owner)
    left = [Waiting(str(i), owner, i) for i, (owner, _) in enumerate(jobs)]
    durations = {str(i): seconds for i, (_, seconds) in enumerate(jobs)}
    running, last_start, ends, now = Counter(), {}, [], 0.0
    passed = {owner: Counter() for owner in OWNERS}
    while left or ends:
        while (found := next_job(left, running, last_start, limits)) is not None:
            left.remove(found)
            running[found.owner] += 1
            now += 1e-6
            last_start[found.owner] = now
            heapq.heappush(ends, (now + durations[found.id], found.owner))
            passed[found.owner].clear()
            for job in left:
                if running[job.owner] == 0:
                    passed[job.owner][found.owner, found.id] = 1
            for owner, others in passed.items():
                counts = Counter(other for other, _ in others)
                assert running[owner] or max(counts.values(), default=0) <= 1
        assert running.total() <= in_all and (per_owner is None or max(running.values()) <= per_owner)
        now, owner = heapq.heappop(ends)
        running[owner] -= 1


@given(st.lists(st.sampled_from(OWNERS), max_size=20), st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 3)))
def test_every_waiting_job_has_one_place(owners, running):
    jobs = waiting(*owners)
    found = order(jobs, running, {}, Limits(2, 1))
    assert sorted(found) == sorted(job.id for job in jobs)
    for owner in OWNERS:
        own = [id for id in found if id.startswith(owner)]
        assert own == [job.id for job in jobs if job.owner == owner]
