"""What may share an endpoint, and by which names it answers."""

import dataclasses

import pytest
from serving_world import card, make_base, publish, write_adapter, write_model

from raytune_llm.errors import InputError
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.stores.registry import Registry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base, other = make_base(root / "tiny"), make_base(root / "other", seed=1)
    registry = Registry(str(root / "registry"))
    for seed in (1, 2):
        publish(registry, base, "wit", write_adapter(base, root / f"wit{seed}", seed=seed))
    publish(registry, base, "full", write_model(base, root / "full", seed=3), kind="model")
    publish(registry, other, "foreign", write_adapter(other, root / "foreign", seed=4))
    publish(registry, base, "taste", write_adapter(base, root / "taste", seed=5), kind="reward")
    publish(registry, base, "tiny", write_adapter(base, root / "namesake", seed=6))
    changed = dataclasses.replace(card(base, "adapter"), base_revision="0" * 64)
    registry.publish("stale", root / "wit1", changed)
    half = dataclasses.replace(card(base, "adapter"), base_loading={**base.loading(), "dtype": "bfloat16"})
    registry.publish("half", root / "wit1", half)
    registry.promote(registry.resolve("wit@2"))
    return registry


def test_names_of_what_is_served(world):
    catalog = read_catalog(world, ["wit@1", "wit@champion", "full", "wit@2"])
    assert [entry.names for entry in catalog.entries] == [
        ("tiny",),
        ("wit@1", "wit"),
        ("wit@2", "wit@champion"),
        ("full@1", "full"),
    ]
    assert [entry.kind for entry in catalog.entries] == ["base", "adapter", "adapter", "model"]
    assert catalog.find("wit").id == "wit@1"
    assert catalog.find("wit@3") is None
    assert catalog.without(["wit@1"]).find("wit") is None
    assert catalog.entries[1].created > 1.7e9


@pytest.mark.parametrize(
    ("references", "reason"),
    [
        ([], "version= names nothing to serve"),
        (["wit", "foreign"], r"foreign@1 was tuned from .*other.* from wit@2\); serve it from an endpoint of its own"),
        (["taste"], "taste@1 is of kind reward, which gives no answers"),
        (["stale"], "stale@1 was tuned from another state of .*tiny: its card has 000000000000"),
        (["wit", "half"], "half@1 was tuned with model.dtype=bfloat16, this endpoint's base has float32, from wit@2"),
        (["tiny"], "tiny@1 has the same name as its base"),
        (["wit@9"], "wit@9 is not in"),
        (["../wit"], "name"),
    ],
)
def test_refusals_name_the_version_and_the_reason(world, references, reason):
    with pytest.raises(InputError, match=reason):
        read_catalog(world, references)
