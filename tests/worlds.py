"""Small worlds that tests share: random tiny bases with a tokenizer, and records for them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)

from raytune_llm.data.records import PlainText, Preference, Rationale, Supervised
from raytune_llm.jobs.precompute import FrozenModels, Precomputed, precompute
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.publish import make_card
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import Registry
from raytune_llm.training.config import Outcome, Trial, TrialSpec
from raytune_llm.training.objective import Report
from raytune_llm.training.trial import WorkerContext, fit

WORDS = [
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "four",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "sings",
    "what",
    "does",
    "the",
    "say",
    "to",
    "me",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of a few hundred tokens with EOS and pad, without a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    generator = random.Random(0)
    inner.train_from_iterator((" ".join(generator.choices(WORDS, k=6)) for _ in range(200)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")


def llama(vocab_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def qwen(vocab_size: int) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def t5(vocab_size: int) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size,
            d_model=32,
            d_ff=64,
            d_kv=8,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def t5gemma(vocab_size: int) -> T5GemmaForConditionalGeneration:
    """An encoder-decoder base without sdpa, that names no token to start the decoder with but its BOS."""
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    limits = {"max_position_embeddings": 128, "sliding_window": 10, "initializer_range": 0.2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    half = sizes | heads | limits | ids
    return T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=half, decoder=half, vocab_size=vocab_size, **ids))


SHAPES = {"llama": llama, "qwen": qwen, "t5": t5, "t5gemma": t5gemma}


def write_base(folder: Path, shape: str) -> Path:
    """A random base of a shape, as a transformers folder."""
    torch.manual_seed(0)
    words = tokenizer()
    SHAPES[shape](len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def supervised(words: list[str]) -> dict[str, object]:
    """The answer is the last word of the prompt."""
    return {"input_text": " ".join(words), "output_text": words[-1]}


def text(words: list[str]) -> dict[str, object]:
    return {"text": " ".join(words)}


def preference(words: list[str]) -> dict[str, object]:
    """The last word of the prompt is preferred to a word that isn't in it."""
    other = next(word for word in WORDS if word not in words)
    return {"prompt": " ".join(words), "chosen": words[-1], "rejected": other}


def rationale(words: list[str]) -> dict[str, object]:
    """The answer is the last word of the prompt; records whose first word is the first of all have no rationale."""
    reason = {} if words[0] == WORDS[0] else {"rationale": f"to say {words[-1]}"}
    return {**supervised(words), **reason}


RECORDS = {Supervised: supervised, PlainText: text, Preference: preference, Rationale: rationale}


def write_records(folder: Path, count: int = 24, kinds: Sequence[type] = (Supervised,)) -> tuple[Path, Path]:
    """Train and eval files of a task that can be learned, of the first of these kinds."""
    write = RECORDS[kinds[0]]
    generator = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, size in (("train", count), ("eval", 8)):
        lines = []
        for _ in range(size):
            words = generator.choices(WORDS[:6], k=3)
            lines.append(json.dumps(write(words)))
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths[0], paths[1]


def spec_of(job: TrainJob, milestones: Sequence[int] = (), id: str = "t") -> TrialSpec:
    """The one trial of a job."""
    prepared = prepare(job)
    config = job.trial_config(prepared.better, prepared.answering)
    return TrialSpec(config=config, trial=Trial(id=id, values={}), milestones=tuple(milestones))


def precomputed(job: TrainJob) -> Precomputed:
    """The job's data with all that its method needs of frozen models."""
    return precompute(
        FrozenModels.of(job, use_gpu=False),
        prepare(job).encoded,
        max_examples=job.evaluation.max_examples,
        seed=job.seed,
    )


class Silent:
    """A tracker's run that keeps nothing."""

    def log(self, step, metrics): ...

    def finish(self, summary, failed): ...


def trained(job: TrainJob, folder: Path) -> Path:
    """What a trial of the job leaves as its best."""
    folder.mkdir(parents=True)
    fit(
        spec_of(job),
        precomputed(job).examples,
        WorkerContext(folder, 0, 1, False),
        report=lambda *_: None,
        run=Silent(),
        progress=lambda *_: None,
        resume=None,
    )
    return folder / "checkpoint" / "best"


def published(job: TrainJob, files: Path) -> Version:
    """A version of a job's name with these files, as if it had been compared."""
    best = Report(step=1, metrics={job.method.metric: 0.5, "train/loss": 0.5})
    outcome = Outcome(
        trial=Trial(id="t", values={}), reports=(best,), best=best, checkpoint=str(files), seconds=0.0, ended="complete"
    )
    return Registry(job.registry_dir).publish(job.name, files, make_card(job, prepare(job), outcome, {}, None))
