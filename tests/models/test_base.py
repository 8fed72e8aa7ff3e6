from dataclasses import replace

import pytest
import torch
from worlds import write_base

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.models import base as bases
from raytune_llm.models.base import Base, DType, template_text
from raytune_llm.models.load_options import check_quantization, device_map
from raytune_llm.models.loading import load_model, load_tuned


def job_at(folder, *overrides):
    return load("train", [f"model.name_or_path={folder}", "data.train=x.jsonl", "model.dtype=float32", *overrides])


@pytest.mark.parametrize(
    ("shape", "encoder_decoder"), [("llama", False), ("qwen", False), ("t5", True), ("t5gemma", True)]
)
def test_facts_are_read_without_weights(shape, encoder_decoder, tmp_path):
    eager = ["model.attention=eager"] if shape == "t5gemma" else []
    facts = job_at(write_base(tmp_path, shape), *eager).model.facts
    assert (facts.num_layers, facts.context_tokens) == (2, None if shape == "t5" else 128)
    assert facts.is_encoder_decoder is encoder_decoder and facts.hidden_size == 32
    assert facts.num_parameters == sum(p.numel() for p in job_at(tmp_path, *eager).model.load().parameters())
    assert facts.max_lora_rank == {"llama": 32, "qwen": 16, "t5": 32, "t5gemma": 16}[shape]
    assert len(facts.revision_hash) == 64


def test_an_attention_that_the_base_does_not_have_is_refused(tmp_path):
    job = job_at(write_base(tmp_path, "t5gemma"))
    with pytest.raises(InputError, match=r"model\.attention=sdpa: .* none for T5GemmaFor.*; set it to eager"):
        _ = job.model.facts


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


@pytest.fixture
def gpu(monkeypatch):
    """A process whose own GPU is the fourth, as far as torch is asked; nothing can be put there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


def test_the_dtype_is_that_of_the_device_which_is_used(gpu, tmp_path):
    """Also in a process that sees a GPU and computes on the CPU."""
    base = job_at(write_base(tmp_path, "llama"), "model.dtype=auto").model
    assert base.torch_dtype("cpu") is torch.float32 and base.torch_dtype("cuda") is torch.bfloat16
    assert replace(base, dtype=DType.float64).torch_dtype("cuda") is torch.float64
    assert base.load().dtype == torch.float32
    assert (base.resolved("cuda").dtype, base.resolved("cpu").dtype) == (DType.bfloat16, DType.float32)
    assert base.resolved("cuda").load().dtype == torch.bfloat16


def test_a_model_is_loaded_straight_onto_its_device(gpu, tmp_path, monkeypatch):
    base = job_at(write_base(tmp_path, "llama"), "model.dtype=auto").model
    assert not base.facts.is_encoder_decoder
    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(place, **options):
            asked.append(options)
            raise InterruptedError

    monkeypatch.setattr(bases, "auto_class", lambda *_, **__: Auto)
    for load_it in (base.load, lambda **_: load_model(base, None, use_gpu=True)):
        with pytest.raises(InterruptedError):
            load_it(device="cuda")
    for options in asked:
        assert options["device_map"] == {"": torch.device("cuda", 3)} and options["dtype"] is torch.bfloat16
    assert device_map("cpu") == {} and len(asked) == 2


@pytest.mark.parametrize("shape", ["llama", "qwen", "t5"])
@pytest.mark.parametrize("score", [False, True])
def test_a_device_map_changes_no_weight(tmp_path, monkeypatch, shape, score):
    base = job_at(write_base(tmp_path, shape)).model
    plain = base.load(score=score)
    monkeypatch.setattr(bases, "device_map", lambda device: {"device_map": {"": torch.device("cpu")}})
    mapped = base.load(score=score)
    assert not hasattr(mapped, "hf_device_map")  # a trainer would take it for one that is split over devices
    found = dict(mapped.named_parameters()) | dict(mapped.named_buffers())
    expected = dict(plain.named_parameters()) | dict(plain.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_arguments_of_from_pretrained_are_passed_on(tmp_path):
    folder = write_base(tmp_path, "llama")
    base = job_at(folder, "model.from_pretrained.quantization_config.load_in_4bit=true").model
    assert base.from_pretrained == {"quantization_config": {"load_in_4bit": True}} and base.is_quantized
    with pytest.raises(ImportError, match="bitsandbytes"):
        base.load()
    assert not job_at(folder, "model.from_pretrained.use_kernels=false").model.is_quantized
    assert Base.from_loading(base.loading()) == base


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device_map=auto", r"device_map=auto is not allowed; set scaling\.use_gpu"),
        ("attn_implementation=eager", r"attn_implementation=eager is not allowed; set model\.attention"),
        ("dtype=bfloat16", r"dtype=bfloat16 is not allowed; set model\.dtype"),
        ("trust_remote_code=true", r"trust_remote_code=True is not allowed; allowed: quantization_config, "),
        ("quantization_config=4bit", r"quantization_config=4bit is not allowed; allowed: a mapping, like"),
    ],
)
def test_other_arguments_of_from_pretrained_are_refused(tmp_path, override, message):
    with pytest.raises(InputError, match=rf"model\.from_pretrained\.{message}"):
        job_at(tmp_path, f"model.from_pretrained.{override}")


def test_a_card_of_before_from_pretrained_is_read(tmp_path):
    base = job_at(write_base(tmp_path, "llama")).model
    assert Base.from_loading({k: v for k, v in base.loading().items() if k != "from_pretrained"}) == base


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "nope"}, "Unknown quantization type, got nope"),
        ({"load_in_4bit": 4}, "load_in_4bit must be a boolean"),
        ({"load_in_4bit": True}, "pip install bitsandbytes"),
    ],
)
def test_a_quantisation_that_can_not_be_is_refused_before_anything_is_loaded(config, message):
    check_quantization({})
    with pytest.raises(InputError, match=r"model\.from_pretrained\.quantization_config=.*" + message):
        check_quantization({"quantization_config": config})


def test_a_chat_template_is_text_or_a_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    assert template_text("{% for m in messages %}{% endfor %}") == "{% for m in messages %}{% endfor %}"
    assert template_text(str(file)) == "{{ messages }}"
    missing = f"{tmp_path}/chat.jinj"
    with pytest.raises(InputError) as caught:
        template_text(missing)
    assert str(caught.value) == (
        f"model.chat_template={missing}: no such file, and no Jinja template, which has braces; "
        f"{tmp_path} has chat.jinja"
    )
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="can't be read: 'utf-8' codec can't decode byte 0xff"):
        template_text(str(file))
