"""The configuration that vLLM is given, without vLLM."""

import dataclasses

import pytest
from serving_world import make_base, publish, write_adapter, write_model

from raytune_llm.errors import InputError
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.serving.engine import vllm
from raytune_llm.serving.engine.vllm import VllmEngine, lora_rank_of, smallest_legal_lora_rank
from raytune_llm.stores.registry import Registry

ENGINE = VllmEngine(gpus_per_replica=2, gpu_memory_utilization=0.8, max_resident_adapters=4, accelerator_type="H100")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A registry whose folder acts as a bucket."""
    base = make_base(tmp_path / "tiny")
    registry = Registry(str(tmp_path / "registry"))
    for seed, (name, rank) in enumerate((("wit", 4), ("dry", 9), ("wit", 2)), 1):
        publish(registry, base, name, write_adapter(base, tmp_path / f"{name}{seed}", seed=seed, rank=rank))
    publish(registry, base, "dora", write_adapter(base, tmp_path / "dora", seed=9, dora=True))
    publish(registry, base, "whole", write_model(base, tmp_path / "whole", seed=9), kind="model")
    monkeypatch.setattr(vllm, "BUCKETS", (str(tmp_path),))
    return registry


def test_ranks_become_the_smallest_legal_size():
    assert [smallest_legal_lora_rank(rank) for rank in (1, 2, 8, 9, 64, 257, 512)] == [1, 8, 8, 16, 64, 320, 512]
    with pytest.raises(InputError, match="rank 513 is more than vLLM's largest, 512"):
        smallest_legal_lora_rank(513)


def test_the_config_follows_the_cards(world):
    catalog = read_catalog(world, ["wit@1", "dry", "wit@2"])
    found = ENGINE.llm_config(ENGINE.named(catalog), {"num_replicas": 3})
    engine = found["engine_kwargs"]
    assert found["model_loading_config"] == {"model_id": "tiny", "model_source": catalog.base.name_or_path}
    assert (engine["enable_lora"], engine["max_lora_rank"], engine["max_loras"]) == (True, 16, 4)
    assert (engine["tensor_parallel_size"], engine["max_model_len"], engine["dtype"]) == (2, 128, "float32")
    assert found["lora_config"] == {"dynamic_lora_loading_path": world.root, "max_num_adapters_per_replica": 4}
    assert (found["deployment_config"], found["accelerator_type"]) == ({"num_replicas": 3}, "H100")


def test_names_always_hold_the_version(world):
    named = ENGINE.named(read_catalog(world, ["wit@1", "dry", "wit@2"]))
    assert [entry.names for entry in named.entries] == [
        ("tiny",),
        ("tiny:wit/v1",),
        ("tiny:dry/v1",),
        ("tiny:wit/v2",),
    ]
    assert named.find("wit") is None


@pytest.mark.parametrize(
    ("reference", "reason"),
    [("dora", "dora@1 is a DoRA adapter, which vLLM can't serve"), ("whole", "whole@1 is of kind model")],
)
def test_what_vllm_can_not_serve_is_refused(world, reference, reason):
    with pytest.raises(InputError, match=reason):
        ENGINE.llm_config(read_catalog(world, [reference]), {})


def test_a_registry_outside_a_bucket_and_an_encoder_decoder_base_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "BUCKETS", ("s3://",))
    with pytest.raises(InputError, match=r"serve=vllm reads adapters from a bucket \(s3://\)"):
        lora_rank_of(world.resolve("wit"))
    base = make_base(tmp_path / "t5", is_encoder_decoder=True)
    publish(world, base, "both", write_adapter(base, tmp_path / "both", seed=1))
    with pytest.raises(InputError, match="is encoder-decoder"):
        ENGINE.llm_config(read_catalog(world, ["both"]), {})


def test_without_vllm_or_a_gpu_it_says_so(world):
    catalog = read_catalog(world, ["wit"])
    with pytest.raises(InputError, match=r"serve=vllm needs vLLM .*raytune-llm\[vllm\]"):
        ENGINE.application(lambda: None, catalog, {}, is_guarded=False)
    with pytest.raises(InputError, match="has no API keys"):
        ENGINE.application(lambda: None, catalog, {}, is_guarded=True)
    with pytest.raises(InputError, match="needs a GPU"):
        ENGINE.resources(cluster_has_gpu=False)
    assert ENGINE.resources(cluster_has_gpu=True) == {"num_gpus": 2.0}


@pytest.mark.parametrize(
    ("name", "value"), [("gpus_per_replica", 0), ("gpu_memory_utilization", 1.5), ("max_resident_adapters", 0)]
)
def test_values_out_of_range_are_refused_by_their_key(name, value):
    with pytest.raises(ValueError, match=rf"serve\.engine\.{name}={value} is not allowed"):
        dataclasses.replace(ENGINE, **{name: value})
