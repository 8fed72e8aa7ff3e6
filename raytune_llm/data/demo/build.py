"""Builds the embedded demo: `python -m raytune_llm.data.demo.build [--out DIR]` writes `base/` and `data/` under DIR.

The tokenizer (byte-level BPE) and the base (a Llama of under a million parameters) are trained on `corpus.documents`;
the records come from `tasks.py`. With the same seed and versions the data and the tokenizer are equal byte for byte;
README.md says how near the weights come. Leaves out resuming and accelerators: it takes minutes on one core.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raytune_llm.data.demo import corpus, tasks

SEED = 20
VOCABULARY = 1152
CONTEXT_TOKENS = 256
LABEL_COPIES = 2_000
DOCUMENTS = 130_000
ROWS_PER_STEP = 8
LEARNING_RATE = 5e-3
WARMUP_STEPS = 100
THREADS = 1


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the documents, with the chat's special tokens and template; no token is added by itself.

    The words of `corpus.WORDS` are counted `LABEL_COPIES` times more, so that each label is a single token and label
    likelihood says nothing about label length.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(corpus.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    labels = [f"{word}\n the {word}" for word in corpus.WORDS] * LABEL_COPIES
    bpe.train_from_iterator([*documents, *labels], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=corpus.BOS,
        eos_token=corpus.EOS,
        pad_token=corpus.PAD,
        additional_special_tokens=[f"<|{role}|>" for role in corpus.ROLES],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=corpus.CHAT_TEMPLATE,
    )


def new_base(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained base: 4 layers of width 128, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pack_rows(documents: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole documents laid one after another into rows of the context's length, padded.

    Returns ids and positions, each (rows, T). Positions begin again with each document, which is how the model
    knows not to attend across; in every eighth row they run on, so that long distances are met too.
    """
    ids: list[list[int]] = [[]]
    positions: list[list[int]] = [[]]
    for document in documents:
        if len(ids[-1]) + len(document) > CONTEXT_TOKENS:
            ids.append([])
            positions.append([])
        start = len(ids[-1]) if len(ids) % 8 == 0 else 0
        ids[-1] += document
        positions[-1] += range(start, start + len(document))
    for row, places in zip(ids, positions, strict=True):
        places += range(CONTEXT_TOKENS - len(row))
        row += [pad_id] * (CONTEXT_TOKENS - len(row))
    return torch.tensor(ids), torch.tensor(positions)


def batches(rows: int, seed: int) -> Iterator[list[int]]:
    """Row indices once, shuffled, `ROWS_PER_STEP` at a time."""
    order = list(range(rows))
    Random(seed).shuffle(order)
    for start in range(0, rows - ROWS_PER_STEP + 1, ROWS_PER_STEP):
        yield order[start : start + ROWS_PER_STEP]


def rate(step: int, steps: int) -> float:
    """Cosine to a twentieth after a linear warm-up, as a fraction of the peak."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return 0.05 + 0.475 * (1 + math.cos(math.pi * progress))


def train_base(model: LlamaForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> None:
    """One pass over the rows with AdamW; next-token loss on every token but padding. Both arguments (rows, T)."""
    steps = len(ids) // ROWS_PER_STEP
    labels = ids.masked_fill(ids == model.config.pad_token_id, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    model.train()
    started = time.perf_counter()
    for step, batch in enumerate(batches(len(ids), SEED)):
        loss = model(input_ids=ids[batch], position_ids=positions[batch], labels=labels[batch], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def write_base(out: Path) -> None:
    """Trains tokenizer and base and writes them as a transformers directory."""
    torch.manual_seed(SEED)
    documents = corpus.documents(SEED, DOCUMENTS)
    tokenizer = train_tokenizer(documents)
    model = new_base(tokenizer)
    encoded = tokenizer([text + corpus.EOS for text in documents])["input_ids"]
    train_base(model, *pack_rows(encoded, tokenizer.pad_token_id))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)


def write_data(out: Path) -> None:
    """Writes every task's train, eval and test records as JSON Lines."""
    for task, splits in tasks.all_tasks().items():
        for split, records in splits.items():
            target = out / task / f"{split}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            target.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder for base/ and data/")
    parser.add_argument("--data-only", action="store_true", help="leave the base as it is")
    options = parser.parse_args()
    write_data(options.out / "data")
    if not options.data_only:
        torch.set_num_threads(THREADS)
        write_base(options.out / "base")


if __name__ == "__main__":
    main()
