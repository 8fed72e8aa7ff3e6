"""An exported slot is a PEFT adapter with the pack's own logits; what can't be packed is refused with its reason."""

import json

import pytest
import torch
from packed_oracle import CONFIGS, make_examples, make_model, make_pack, make_spec, sft_terms, table_of
from peft import LoraConfig, PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from raytune_llm.methods.base import Needs
from raytune_llm.models.base import linear_targets
from raytune_llm.models.lora_folder import target_names
from raytune_llm.training.packed.eligibility import not_packable_reason
from raytune_llm.training.packed.export import export_adapter, peft_config


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "t5"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_an_exported_slot_with_equal_logits(tmp_path, kind, rslora):
    pack = make_pack(make_model(kind))
    table = table_of(make_examples(20, is_encoder_decoder=kind == "t5"), pack.model)
    specs = [make_spec("a", lora_rank=2), make_spec("b", lora_rank=8, rslora=rslora, seed=2)]
    for spec in specs:
        pack.join(spec, table, sft_terms)
    for _ in range(3):
        pack.step()
    config = peft_config(specs[1], pack.names, is_encoder_decoder=kind == "t5")
    export_adapter(tmp_path, pack.weights("b"), config, base="some/base")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["r"], stored["use_rslora"]) == ("some/base", 8, rslora)
    loaded = PeftModel.from_pretrained(make_model(kind), str(tmp_path)).eval()
    inputs = {"input_ids": torch.arange(3, 13).view(1, 10)}
    if kind == "t5":
        inputs["decoder_input_ids"] = torch.arange(3, 9).view(1, 6)
    with torch.no_grad():
        expected = loaded(**inputs).logits
        with pack.stack.routed(pack.stack.span(1, 2)):
            found = pack.model(**inputs).logits
        assert (found - make_model(kind)(**inputs).logits).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Learner:
    needs = Needs()

    def terms(self, outputs):
        return {}


class Sampler:
    pass


def lora(**changes):
    return LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | changes))


def test_plain_lora_packs():
    model = make_model()
    assert not_packable_reason(lora(), Learner(), model) is None
    assert not_packable_reason(lora(use_rslora=True, lora_dropout=0.1), Learner(), model) is None
    assert not_packable_reason(lora(target_modules="all-linear"), Learner(), model) is None
    assert target_names(lora(target_modules="all-linear"), model) == linear_targets(model)
    assert target_names(lora(layers_to_transform=[1]), model) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_packs(kind):
    assert not_packable_reason(lora(target_modules="all-linear"), Learner(), make_model(kind)) is None


REFUSED = [
    (None, Learner(), "full tuning changes the base"),
    (lora(), Sampler(), "the method gives no terms"),
    (lora(use_dora=True), Learner(), "use_dora=True"),
    (lora(modules_to_save=["lm_head"]), Learner(), r"modules_to_save=\['lm_head'\]"),
    (lora(bias="all"), Learner(), "bias=all"),
    (lora(rank_pattern={"q_proj": 2}), Learner(), "rank_pattern="),
    (lora(init_lora_weights="pissa"), Learner(), "init_lora_weights=pissa"),
    (lora(target_modules=["lm_head"]), Learner(), "output head lm_head"),
    (lora(target_modules=["embed_tokens"]), Learner(), "embed_tokens is a Embedding"),
    (lora(target_modules=["nothing"]), Learner(), "no layer of LlamaForCausalLM"),
]


@pytest.mark.parametrize(("config", "method", "reason"), REFUSED, ids=[reason for _, _, reason in REFUSED])
def test_the_rest_is_refused_with_its_reason(config, method, reason):
    import re

    found = not_packable_reason(config, method, make_model())
    assert found is not None and re.search(reason, found)


def test_gpt2_is_refused_for_its_conv1d():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20))
    found = not_packable_reason(lora(target_modules=["c_attn"]), Learner(), model)
    assert found == "the adapted layer transformer.h.0.attn.c_attn is a Conv1D, not nn.Linear"
