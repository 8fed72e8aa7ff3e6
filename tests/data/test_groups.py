"""Group members are other examples, the same ones for the same seed."""

from raytune_llm.data.groups import with_group_members


def test_members_are_others_and_the_same_for_the_same_seed():
    examples = [{"completion": object()} for _ in range(5)]
    grouped = with_group_members(examples, 3, seed=0)
    for example, group in zip(examples, grouped, strict=True):
        members = [id(sequence) for sequence in group.values()]
        assert list(group) == ["completion", "member1", "member2", "member3"] and len(set(members)) == 4
        assert group["completion"] is example["completion"]
    assert [list(map(id, g.values())) for g in with_group_members(examples, 3, 0)] == [
        list(map(id, g.values())) for g in grouped
    ]


def test_there_are_no_more_members_than_others():
    examples = [{"completion": object()} for _ in range(2)]
    assert [list(group) for group in with_group_members(examples, 3, 0)] == [["completion", "member1"]] * 2
    assert with_group_members([], 3, 0) == []
