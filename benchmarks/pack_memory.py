"""One pack of 16 slots fed 200 short trials: the process's own memory and what a trial costs besides its steps.

    python benchmarks/pack_memory.py

Each trial joins as soon as a slot is free, takes 5 to 8 steps and leaves with its state saved. Own memory is what this
process alone has written (Private_Dirty of /proc/self/smaps_rollup; clean pages of libraries count as private or shared
as other processes come and go). Flat means: after the first 32 trials it grows by less than 1 %.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from pack_step import Row, make_base, make_examples, make_spec, terms

from raytune_llm.models.base import linear_targets
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.pack import Pack

SLOTS, TRIALS, STEPS = 16, 200, 5
ROW = Row("260k", SLOTS, 2, 64, "uneven")


def own_bytes() -> int:
    """Memory that this process alone has written."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


def main() -> None:
    torch.set_num_threads(1)
    examples = make_examples(ROW)
    table = TokenTable(examples, is_encoder_decoder=False)
    base = make_base(ROW.base)
    pack = Pack(base, linear_targets(base), capacity=SLOTS, max_lora_rank=16, budget=PassBudget(SLOTS, 1 << 16, 256))
    started = done = 0
    seconds = {"join": 0.0, "step": 0.0, "save and leave": 0.0}
    memory: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        while done < TRIALS:
            now = time.process_time()
            while len(pack.trial_ids) < SLOTS and started < TRIALS:
                pack.join(make_spec(started, ROW), table, terms)
                started += 1
            seconds["join"] += time.process_time() - now
            now = time.process_time()
            reports = pack.step()
            seconds["step"] += time.process_time() - now
            now = time.process_time()
            for trial_id, report in reports.items():
                if report.step == STEPS + int(trial_id) % 4:  # so that they don't leave in step
                    pack.state(trial_id).save(folder)
                    pack.leave(trial_id)
                    done += 1
                    memory[done] = own_bytes()
            seconds["save and leave"] += time.process_time() - now
    after_32 = max(memory[i] for i in range(17, 33))
    at_end = max(memory[i] for i in range(TRIALS - 15, TRIALS + 1))
    summary = {
        "benchmark": "pack_memory",
        "slots": SLOTS,
        "trials": TRIALS,
        "own_megabytes_after_32": round(after_32 / 1e6, 1),
        "own_megabytes_after_200": round(at_end / 1e6, 1),
        "growth": round(at_end / after_32 - 1, 4),
        "flat": at_end < 1.01 * after_32,
        "join_milliseconds": round(1e3 * seconds["join"] / TRIALS, 2),
        "save_and_leave_milliseconds": round(1e3 * seconds["save and leave"] / TRIALS, 2),
        "step_milliseconds": round(1e3 * seconds["step"] / TRIALS / (STEPS + 1.5), 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
