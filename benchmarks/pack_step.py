"""One step of N packed trials against one step of each of them alone, PEFT on a warm base.

    python benchmarks/pack_step.py            every row; about ten minutes on one idle core
    python benchmarks/pack_step.py --quick    the two rows that have a target

The other side is the barest honest loop: base and adapters loaded, PEFT's forward and transformers' own loss, torch's
AdamW, clip_grad_norm_; no trainer around it. Same ranks (1, 4, 8, 16 in turn), same rows, same rates. Sides alternate
within a run. CPU seconds of the process are compared, wall seconds are reported too. Rows `even`: every sequence has
the full length and every token is a label. Rows `uneven`: lengths from a quarter to the full length, the second half
of each a label.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import get_peft_model
from token_trials import terms, trial
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.order import first_indices
from raytune_llm.models.base import linear_targets
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.export import peft_config
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner

BASES = {  # hidden, layers, heads, key-value heads, intermediate, vocabulary
    "260k": (64, 5, 8, 4, 172, 512),
    "demo": (128, 4, 4, 4, 352, 1024),
    "9m": (320, 6, 5, 5, 864, 4096),
}
RANKS = (1, 4, 8, 16)


@dataclass(frozen=True)
class Row:
    base: str
    slots: int
    batch_size: int
    length: int
    kind: str = "even"
    target: float | None = None


ROWS = [
    Row("260k", 16, 1, 64, target=2.5),
    Row("demo", 16, 1, 64, target=1.5),
    Row("260k", 4, 1, 64),
    Row("260k", 16, 8, 64),
    Row("260k", 16, 8, 128, "uneven"),
    Row("demo", 4, 1, 64),
    Row("demo", 16, 1, 128, "uneven"),
    Row("demo", 16, 8, 64),
    Row("demo", 16, 8, 128, "uneven"),
    Row("9m", 16, 1, 64),
    Row("9m", 4, 4, 128),
    Row("9m", 4, 4, 128, "uneven"),
]


def make_base(name: str) -> PreTrainedModel:
    hidden, layers, heads, key_value_heads, intermediate, vocabulary = BASES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def make_examples(row: Row, count: int = 256) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = BASES[row.base][-1]
    examples = []
    for _ in range(count):
        shortest = row.length // 4 if row.kind == "uneven" else row.length
        length = int(torch.randint(shortest, row.length + 1, (), generator=generator))
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        prompt = length // 2 if row.kind == "uneven" else 0
        examples.append({"completion": TokenSequence(ids, [IGNORED] * prompt + ids[prompt:])})
    return examples


def make_spec(index: int, row: Row) -> Hyperparameters:
    return trial(index, lora_rank=RANKS[index % len(RANKS)], batch_size=row.batch_size)


class Solo:
    """A trial alone; trials of one rank take turns on one adapted model, whose values don't matter for its speed."""

    def __init__(self, row: Row, examples: list[Example], spec: Hyperparameters) -> None:
        base = make_base(row.base)
        config = peft_config(spec, linear_targets(base), is_encoder_decoder=False)
        self.model = get_peft_model(base, config).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        self.row, self.sequences = row, [example["completion"] for example in examples]

    def step(self, indices: list[int]) -> None:
        chosen = [self.sequences[i] for i in indices]
        ids = pad_sequence([torch.tensor(s.input_ids) for s in chosen], batch_first=True)
        mask = pad_sequence([torch.ones(len(s.input_ids), dtype=torch.long) for s in chosen], batch_first=True)
        labels = pad_sequence([torch.tensor(s.labels) for s in chosen], batch_first=True, padding_value=IGNORED)
        self.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(row: Row, rounds: int) -> dict[str, object]:
    """Median seconds of one step of all trials on both sides, after both are warm and the planner has chosen."""
    examples = make_examples(row)
    table = TokenTable(examples, is_encoder_decoder=False)
    base = make_base(row.base)
    pack = Pack(
        base, linear_targets(base), capacity=row.slots, max_lora_rank=max(RANKS), budget=PassBudget(1, 1 << 16, 0)
    )
    choices: list[str] = []
    planner = Planner(pack, max_tokens=1 << 16, log=choices.append, clock=time.process_time)
    specs = [make_spec(i, row) for i in range(row.slots)]
    for spec in specs:
        pack.join(spec, table, terms)
    solos = {spec.lora_rank: Solo(row, examples, spec) for spec in specs[: len(RANKS)]}
    count = 64 * row.batch_size
    orders = [first_indices(range(len(examples)), spec.seed, count) for spec in specs]

    def alone(step: int) -> None:
        for spec, order in zip(specs, orders, strict=True):
            start = step * row.batch_size % count
            solos[spec.lora_rank].step(order[start : start + row.batch_size])

    while not choices:
        planner.step()
    alone(0)
    packed, solo = [], []
    for step in range(rounds):
        packed.append(timed(planner.step))
        solo.append(timed(lambda step=step: alone(step)))
    cpu = [statistics.median(side[0] for side in sides) for sides in (packed, solo)]
    wall = [statistics.median(side[1] for side in sides) for sides in (packed, solo)]
    return {
        "base": row.base,
        "slots": row.slots,
        "batch_size": row.batch_size,
        "length": row.length,
        "kind": row.kind,
        "packed_cpu_seconds": round(cpu[0], 4),
        "solo_cpu_seconds": round(cpu[1], 4),
        "ratio_cpu": round(cpu[1] / cpu[0], 2),
        "ratio_wall": round(wall[1] / wall[0], 2),
        "slots_per_pass": pack.budget.slots_per_pass,
        "target": row.target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the rows that have a target")
    parser.add_argument("--rounds", type=int, default=7, help="alternations of the two sides in each row")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for row in ROWS:
        if options.quick and row.target is None:
            continue
        found.append(measure(row, options.rounds))
        print("  ".join(f"{key}={value}" for key, value in found[-1].items() if value is not None), flush=True)
    ratios = [figures["ratio_cpu"] for figures in found]
    summary = {
        "benchmark": "pack_step",
        "machine": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "lowest_ratio_cpu": min(ratios),
        "targets_met": all(figures["ratio_cpu"] >= figures["target"] for figures in found if figures["target"]),
        "rows": found,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
