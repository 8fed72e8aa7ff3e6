"""A tiny world to serve: tokenizers, random bases, adapters and models tuned from them, and their registry."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from raytune_llm.models.base import Base, DType
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.local import LocalEngine
from raytune_llm.serving.verify.reference import Reference
from raytune_llm.stores.card import Card, Version
from raytune_llm.stores.registry import Registry

SENTENCES = [
    "What a lovely day to miss the last bus home.",
    "The café in Zürich opens at nine; naïve tourists come at eight.",
    "Oh great, another meeting about meetings. 😀 Wonderful! 日本語",
]
CONTEXT_TOKENS = 128
ENGINE = LocalEngine(
    cpus_per_replica=1,
    use_gpu=False,
    max_resident_adapters=8,
    max_adapter_size=32,
    cache_bytes=None,
    prefill_chunk_tokens=None,
    compile=None,
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Llama 3, Qwen and the embedded base have it: a character may span several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Llama 2 and stories260K have it: one token per byte of an unknown character."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz.,é",
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make_base(folder: Path, *, is_encoder_decoder: bool = False, seed: int = 0) -> Base:
    """A random base with 2 layers, in a folder."""
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer()
    size = len(tokenizer)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if is_encoder_decoder:
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
                initializer_factor=2.0,
                **ids,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT_TOKENS,
                initializer_range=0.3,
                **ids,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(
        name_or_path=str(folder),
        revision=None,
        dtype=DType.float32,
        learning_rate=1e-3,
        attention="sdpa",
        chat_template=None,
        eos_token=None,
        from_pretrained={},
    )


def write_adapter(base: Base, folder: Path, *, seed: int, rank: int = 4, dora: bool = False) -> Path:
    """A LoRA adapter with random weights, so that it answers differently from its base."""
    torch.manual_seed(seed)
    targets = ["q", "v", "wi"] if base.facts.is_encoder_decoder else ["q_proj", "v_proj", "up_proj"]
    task = "SEQ_2_SEQ_LM" if base.facts.is_encoder_decoder else "CAUSAL_LM"
    adapted = get_peft_model(base.load(), LoraConfig(r=rank, target_modules=targets, task_type=task, use_dora=dora))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    base.tokenizer().save_pretrained(folder)
    return folder


def write_model(base: Base, folder: Path, *, seed: int) -> Path:
    """All weights of the base, changed."""
    torch.manual_seed(seed)
    model = base.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    base.tokenizer().save_pretrained(folder)
    return folder


def card(base: Base, kind: str) -> Card:
    return Card(
        kind=kind,
        base=base.name_or_path,
        base_revision=base.facts.revision_hash,
        base_loading=base.loading(),
        method="sft",
        metrics={"eval/loss": 1.0},
        intervals={},
        config={},
        data={},
        seed=0,
        step=1,
        probes=[],
        code_version="test",
    )


def publish(registry: Registry, base: Base, name: str, folder: Path, *, kind: str = "adapter") -> Version:
    return registry.publish(name, folder, card(base, kind))


def greedy_text(model: torch.nn.Module, served: ServedModel, prompt: list[int], max_tokens: int) -> str:
    """The answer of transformers' generate, without leading white space."""
    return Reference(served, model, model).greedy(prompt, max_tokens).text
