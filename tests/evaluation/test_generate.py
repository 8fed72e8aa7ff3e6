import itertools

import pytest
import torch
import worlds
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from raytune_llm.evaluation.generate import generate

SPECIAL = ["<pad>", "<s>", "</s>"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(3, 97))]
CONTEXT = 64


def tokenizer(pad: bool = True) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", **special)


def llama() -> PreTrainedModel:
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=CONTEXT, initializer_range=0.4)
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """Absolute positions: left padding must not shift them."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **sizes, initializer_range=0.4))


def t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(WORDS), **sizes, decoder_start_token_id=0, initializer_factor=5.0)
    return T5ForConditionalGeneration(config)


def bart() -> PreTrainedModel:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "max_position_embeddings": CONTEXT, "init_std": 0.4}
    return BartForConditionalGeneration(BartConfig(vocab_size=len(WORDS), **sizes, **layers, **heads))


def t5gemma() -> PreTrainedModel:
    """Its configs name no first token of the decoder; it begins with its BOS."""
    model = worlds.t5gemma(len(WORDS))
    assert model.generation_config.decoder_start_token_id is None and not hasattr(
        model.config, "decoder_start_token_id"
    )
    return model


def made(build) -> PreTrainedModel:
    torch.manual_seed(0)
    return build().eval()


def prompts(number: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, len(WORDS), (1 + i * 7 % 23,), generator=generator).tolist() for i in range(number)]


def by_hand(model: PreTrainedModel, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> str:
    """The first choice of one whole forward pass after another: no cache, no padding, no transformers generate."""
    start = getattr(model.config, "decoder_start_token_id", 2) if model.config.is_encoder_decoder else None
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        if start is None:
            inputs = {"input_ids": torch.tensor([prompt + answer])}
        else:
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *answer]])}
        with torch.no_grad():
            token = int(model(**inputs).logits[0, -1].argmax())
        if token in stop_ids:
            break
        answer.append(token)
    return tokenizer().decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("build", [llama, gpt2, t5, bart, t5gemma])
def test_batches_of_1_and_16_answer_as_step_by_step_argmax_does(build):
    model, inputs = made(build), prompts(16)
    expected = [by_hand(model, prompt, 10, stop_ids=[2, 50]) for prompt in inputs]
    assert len(set(expected)) > 3, "a model that always says the same shows nothing"
    for batch_size in (1, 5, 16):
        given = generate(model, tokenizer(), inputs, max_new_tokens=10, stop_ids=[2, 50], batch_size=batch_size)
        assert given == expected


def test_an_answer_ends_before_its_stop_token_even_a_plain_word():
    model, inputs = made(llama), prompts(6)
    whole = generate(model, tokenizer(), inputs, max_new_tokens=12, stop_ids=[], batch_size=6)
    stop = whole[0].split()[4]
    cut = generate(model, tokenizer(), inputs, max_new_tokens=12, stop_ids=[WORDS.index(stop)], batch_size=6)
    assert cut == [" ".join(itertools.takewhile(lambda word: word != stop, text.split())) for text in whole]
    assert len(cut[0].split()) <= 4 and any(c == w for c, w in zip(cut, whole, strict=True))


def test_no_sampling_or_penalty_of_the_checkpoint_is_used_and_all_of_it_is_restored():
    model, inputs = made(llama), prompts(8)
    plain = generate(model, tokenizer(), inputs, max_new_tokens=10, stop_ids=[2], batch_size=8)
    loud = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        num_beams=3,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(8, 60)),
        forced_eos_token_id=7,
        min_new_tokens=9,
        max_length=5,
    )
    model.generation_config = loud
    model.train()
    assert generate(model, tokenizer(), inputs, max_new_tokens=10, stop_ids=[2], batch_size=8) == plain
    assert model.generation_config is loud and model.training


def test_an_adapted_model_answers_as_its_merged_self():
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = made(llama)
    inputs = prompts(8)
    before = generate(base, tokenizer(), inputs, max_new_tokens=8, stop_ids=[2], batch_size=4)
    adapted = get_peft_model(base, config)
    base.generation_config.repetition_penalty = 9.0
    given = generate(adapted, tokenizer(), inputs, max_new_tokens=8, stop_ids=[2], batch_size=4)
    assert base.generation_config.repetition_penalty == 9.0
    merged = adapted.merge_and_unload()
    assert given == generate(merged, tokenizer(), inputs, max_new_tokens=8, stop_ids=[2], batch_size=4)
    assert given != before


def test_a_tokenizer_without_pad_token_will_do():
    model, inputs = made(llama), prompts(5)
    with_pad = generate(model, tokenizer(), inputs, max_new_tokens=6, stop_ids=[2], batch_size=5)
    assert generate(model, tokenizer(pad=False), inputs, max_new_tokens=6, stop_ids=[2], batch_size=5) == with_pad


def test_prompts_that_leave_no_room_are_refused():
    model = made(llama)
    fits = [[5] * (CONTEXT - 10)]
    generate(model, tokenizer(), fits, max_new_tokens=10, stop_ids=[2], batch_size=1)
    with pytest.raises(ValueError, match=f"prompt 1 has 55 tokens, but the base's context of {CONTEXT} leaves 54"):
        generate(model, tokenizer(), [*fits, [5] * 55], max_new_tokens=10, stop_ids=[2], batch_size=1)
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        generate(model, tokenizer(), [[]], max_new_tokens=10, stop_ids=[2], batch_size=1)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(model, tokenizer(), fits, max_new_tokens=0, stop_ids=[2], batch_size=1)
