"""Group members are other examples, the same ones for the same seed."""

from raytune_llm.data.examples import TokenSequence
from raytune_llm.data.groups import with_group_members


def numbered(count):
    return [{"completion": TokenSequence([i], [i])} for i in range(count)]


def test_members_are_others_and_the_same_for_the_same_seed():
    examples = numbered(5)
    grouped = with_group_members(examples, 3, seed=0)
    for example, group in zip(examples, grouped, strict=True):
        members = [sequence.input_ids[0] for sequence in group.values()]
        assert list(group) == ["completion", "member1", "member2", "member3"] and len(set(members)) == 4
        assert group["completion"] == example["completion"]
    assert with_group_members(examples, 3, 0) == grouped != with_group_members(examples, 3, 1)


def test_there_are_no_more_members_than_others():
    examples = numbered(2)
    assert [list(group) for group in with_group_members(examples, 3, 0)] == [["completion", "member1"]] * 2
    assert with_group_members([], 3, 0) == []
