import pytest
import torch
from worlds import write_base

from raytune_llm.jobs.config import load
from raytune_llm.models.base import Base
from raytune_llm.models.loading import load_tuned


def job_at(folder, *overrides):
    return load("train", [f"model.name_or_path={folder}", "data.train=x.jsonl", "model.dtype=float32", *overrides])


@pytest.mark.parametrize(("shape", "encoder_decoder"), [("llama", False), ("qwen", False), ("t5", True)])
def test_facts_are_read_without_weights(shape, encoder_decoder, tmp_path):
    facts = job_at(write_base(tmp_path, shape)).model.facts
    assert facts.is_encoder_decoder is encoder_decoder and facts.hidden_size == 32
    assert facts.num_parameters == sum(p.numel() for p in job_at(tmp_path).model.load().parameters())
    assert facts.max_lora_rank == {"llama": 32, "qwen": 16, "t5": 32}[shape]
    assert len(facts.revision_hash) == 64


def test_the_hash_changes_with_the_weights(tmp_path):
    before = job_at(write_base(tmp_path, "llama")).model.facts.revision_hash
    model = job_at(tmp_path).model.load()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert job_at(tmp_path).model.facts.revision_hash != before


def test_the_hash_of_a_hub_s_model_is_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    repository = tmp_path / "models--org--name"
    write_base(repository / "snapshots" / commit, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert job_at("org/name").model.facts.revision_hash == commit


def test_a_base_is_loaded_again_from_its_card(tmp_path):
    base = job_at(write_base(tmp_path, "llama")).model
    assert Base.from_loading(base.loading()) == base


def test_a_card_names_the_embedded_base_wherever_the_package_lies(tmp_path):
    """The package of a submitted job is gone when its version is served."""
    base = load("train", ["model=demo", "data=demo_sarcasm", f"home={tmp_path}"]).model
    assert base.loading()["name_or_path"] == "demo:base"
    assert Base.from_loading(base.loading()) == base


def test_more_tokens_than_the_context_are_refused(tmp_path):
    facts = job_at(write_base(tmp_path, "llama")).model.facts
    assert facts.max_tokens(None) == 128 and facts.max_tokens(64) == 64
    with pytest.raises(ValueError, match=r"data\.max_tokens=129 is more than the base's context of 128 tokens"):
        facts.max_tokens(129)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: folder, "has no config.json"),
    ],
)
def test_what_is_no_base_is_refused_by_key(make, message, tmp_path):
    with pytest.raises(ValueError, match=r"model\.name_or_path=") as error:
        _ = job_at(make(tmp_path)).model.facts
    assert message in str(error.value)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    write_base(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*\.safetensors weights"):
        _ = job_at(tmp_path).model.facts


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_an_adapter_starts_as_the_base_and_depends_on_its_seed_alone(shape, tmp_path):
    job = job_at(write_base(tmp_path / "base", shape))

    def adapter(seed):
        torch.manual_seed(99)
        return job.adapter.apply(job.model.load(), lora_rank=4, seed=seed)

    first, again, other = adapter(0), adapter(0), adapter(1)
    weights = {name: p for name, p in first.named_parameters() if p.requires_grad}
    assert weights and all("lora_" in name and p.dtype == torch.float32 for name, p in weights.items())
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in weights.items())
    assert any(not torch.equal(p, other.get_parameter(name)) for name, p in weights.items())
    assert not any("lm_head" in name for name in weights)


def test_a_stored_adapter_answers_as_before(tmp_path):
    job = job_at(write_base(tmp_path / "base", "llama"))
    model = job.adapter.apply(job.model.load(), lora_rank=4, seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(load_tuned(tmp_path / "adapter", job.model)(ids).logits, model(ids).logits)


def test_layers_that_are_not_there_are_named(tmp_path):
    job = job_at(write_base(tmp_path, "llama"), "adapter.targets=[q_proj,query]")
    with pytest.raises(ValueError, match=r"adapter\.targets=\['query'\] are not linear layers of this base; it has"):
        job.adapter.apply(job.model.load(), lora_rank=4, seed=0)


def test_a_rank_beyond_the_smallest_layer_is_refused(tmp_path):
    job = job_at(write_base(tmp_path, "qwen"))
    job.adapter.check(16, job.model.facts)
    with pytest.raises(ValueError, match=r"tuning\.adapter_size=17 is beyond what the base allows.*choose 1 to 16"):
        job.adapter.check(17, job.model.facts)


def test_the_bases_own_dropout_is_off_where_only_adapters_learn(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    words = write_base(tmp_path, "t5")
    config = T5Config.from_pretrained(words)
    config.dropout_rate = 0.5
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    base = job_at(tmp_path).model

    def two_passes(model):
        model.train()
        ids = torch.arange(2, 12)[None]
        return [model(input_ids=ids, labels=ids).loss.item() for _ in range(2)]

    first, second = two_passes(base.load(own_dropout=False))
    assert first == second
    first, second = two_passes(base.load())
    assert first != second
