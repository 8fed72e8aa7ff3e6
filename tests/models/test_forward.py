import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.models import forward
from raytune_llm.models.forward import inference, outputs

VOCABULARY = 61
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, initializer_range=0.5))


def gemma2() -> PreTrainedModel:
    """Its logits are soft-capped after the head; a low cap makes that visible."""
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, initializer_range=0.5, final_logit_softcapping=1.5))


def gpt2() -> PreTrainedModel:
    """Absolute positions."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5))


def lora_on_llama() -> PreTrainedModel:
    """lm_head is adapted too."""
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(llama(), config)


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def bart() -> PreTrainedModel:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, **sizes, **heads, init_std=0.5))


CAUSAL = [llama, gemma2, gpt2, lora_on_llama]
ENCODER_DECODER = [t5, bart]


def causal_sequence(length: int, num_labels: int) -> TokenSequence:
    ids = torch.randint(3, VOCABULARY, (length,)).tolist()
    return TokenSequence(ids, [IGNORED] * (length - num_labels) + ids[length - num_labels :])


def made(build, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    return build().to(dtype).eval()


def hf_loss(model: PreTrainedModel, sequence: TokenSequence) -> torch.Tensor:
    return model(input_ids=torch.tensor([sequence.input_ids]), labels=torch.tensor([sequence.labels])).loss


@pytest.mark.parametrize("build", CAUSAL)
def test_each_padded_causal_sequence_has_the_loss_that_transformers_gives_it_alone(build):
    model = made(build)
    rows = [causal_sequence(9, 3), causal_sequence(4, 4), causal_sequence(12, 1), causal_sequence(2, 1)]
    rows.append(TokenSequence([5, 6, 7, 8, 9, 10], [IGNORED, 6, IGNORED, 8, 9, IGNORED]))
    found = outputs(model, rows, pad_id=0)
    assert found.logprobs.shape == found.mask.shape == found.correct.shape == (5, 12)
    assert found.mask.sum(-1).tolist() == [
        3,
        3,
        1,
        1,
        3,
    ]  # all four tokens of row 1 are labels, the first has no context
    ours = -(found.logprobs * found.mask).sum(-1) / found.mask.sum(-1)
    # transformers casts logits to fp32 inside its loss
    assert_close(ours, torch.stack([hf_loss(model, row) for row in rows]).double(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("build", ENCODER_DECODER)
def test_each_padded_decoder_sequence_has_the_loss_that_transformers_gives_it_alone(build):
    model = made(build)
    rows = [
        TokenSequence([4, 5, 6, 7], [8, 9, 1]),
        TokenSequence([4, 5], [8, 1]),
        TokenSequence([9, 8, 7, 6, 5], [3, 4, 5, 6, 7, 1]),
    ]
    found = outputs(model, rows, pad_id=0)
    assert found.mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]
    ours = -found.logprobs.sum(-1) / found.mask.sum(-1)
    assert_close(ours, torch.stack([hf_loss(model, row) for row in rows]).double(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("build", CAUSAL)
def test_logprobs_and_choices_stand_where_their_labels_stand(build):
    model = made(build)
    row = causal_sequence(7, 3)
    other = causal_sequence(10, 2)
    found = outputs(model, [row, other], pad_id=0)
    padding = len(other.input_ids) - len(row.input_ids)
    ids = torch.tensor([row.input_ids + [0] * padding, other.input_ids])
    with torch.no_grad():  # of equal shape, since some norms compute in float32
        logits = model(ids).logits[0]
    for place in range(4, 7):
        expected = logits[place - 1].log_softmax(-1)[row.labels[place]]
        assert_close(found.logprobs[0, place], expected, atol=1e-12, rtol=1e-10)
        assert found.correct[0, place] == float(logits[place - 1].argmax() == row.labels[place])
    assert found.logprobs[0, :4].eq(0).all() and found.logprobs[0, 7:].eq(0).all()
    assert found.mask[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_the_models_first_choice_counts_as_correct():
    model = made(llama)
    prompt = [5, 6, 7]
    choice = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    rows = [TokenSequence([*prompt, c], [IGNORED] * 3 + [c]) for c in (choice, (choice + 1) % VOCABULARY)]
    assert outputs(model, rows, pad_id=0).correct.sum(-1).tolist() == [1, 0]


def test_only_the_positions_before_labels_are_projected_to_the_vocabulary():
    model = made(llama)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    outputs(model, [causal_sequence(30, 3), causal_sequence(20, 2)], pad_id=0)
    assert seen == [(5, VOCABULARY)]


def test_a_model_without_logits_to_keep_gives_the_same():
    class Plain(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, use_cache=None):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model = made(llama)
    plain = Plain(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    rows = [causal_sequence(9, 3), causal_sequence(4, 2)]
    assert_close(outputs(plain, rows, pad_id=0).logprobs, outputs(model, rows, pad_id=0).logprobs, atol=1e-12, rtol=0)


def test_gradients_are_those_of_transformers_loss():
    model, row = made(llama), causal_sequence(8, 4)
    found = outputs(model, [row], pad_id=0)
    (-found.logprobs.sum() / found.mask.sum()).backward()
    ours = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    hf_loss(model, row).backward()
    assert_close(ours, model.model.embed_tokens.weight.grad, atol=1e-6, rtol=1e-5)


def test_precision_is_fp32_for_half_models_and_nan_stays_nan():
    model = made(llama, torch.bfloat16)
    rows = [causal_sequence(6, 2), causal_sequence(4, 1)]
    assert outputs(model, rows, pad_id=0).logprobs.dtype == torch.float32
    model.lm_head.weight.data[0, 0] = torch.nan
    assert outputs(model, rows, pad_id=0).logprobs.sum(-1).isnan().all()


def test_a_row_without_any_label_has_no_weight():
    found = outputs(made(llama), [TokenSequence([5, 6], [IGNORED, IGNORED])], pad_id=0)
    assert found.mask.sum() == 0 and found.logprobs.sum() == 0


def test_impossible_sequences_are_refused():
    model = made(llama)
    with pytest.raises(ValueError, match="no sequences"):
        outputs(model, [], pad_id=0)
    with pytest.raises(ValueError, match="sequence 1 has 0 input ids and 0 labels"):
        outputs(model, [causal_sequence(3, 1), TokenSequence([], [])], pad_id=0)
    with pytest.raises(ValueError, match="sequence 0 has 3 input ids and 2 labels"):
        outputs(model, [TokenSequence([4, 5, 6], [5, 6])], pad_id=0)


class LargestExact(TorchDispatchMode):
    """Remembers the most rows of fp32 logits that one operation made."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [t for t in (made if isinstance(made, tuple | list) else (made,)) if isinstance(t, torch.Tensor)]
        logits = [t for t in tensors if t.dtype == torch.float32 and t.shape[-1:] == (VOCABULARY,)]
        self.rows = max([self.rows, *(t.numel() // VOCABULARY for t in logits)])
        return made


@pytest.mark.parametrize("make", [llama, gemma2])
def test_evaluation_never_holds_a_second_copy_of_all_logits(make, monkeypatch):
    model = made(make).to(torch.bfloat16).eval()
    sequences = [causal_sequence(12, 9), causal_sequence(7, 5)]
    with torch.no_grad():
        whole = outputs(model, sequences, pad_id=0)
        monkeypatch.setattr(forward, "ELEMENTS_AT_ONCE", 4 * VOCABULARY)
        with LargestExact() as largest:
            found = outputs(model, sequences, pad_id=0)
    assert whole.mask.sum() > 8 and largest.rows == 4
    for name in ("logprobs", "mask", "correct"):
        assert torch.equal(getattr(found, name), getattr(whole, name))


def test_inference_restores_each_modules_mode_even_after_an_error():
    model = made(llama).train()
    model.model.norm.eval()
    with pytest.raises(KeyError), inference(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and model.lm_head.training and not model.model.norm.training and torch.is_grad_enabled()
