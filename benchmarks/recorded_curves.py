"""Learning curves of real trials with every eval record's statistics, recorded once so that sweeps can be replayed.

Sets of trials are trained in packs, without Ray, on the embedded base and its sarcasm data (1,000 records; 256 to
evaluate on): each cell of 5 adapter sizes × 3 batch sizes has 12 learning rates, spread evenly over log [0.03, 10] times
the recommended one and shifted at random. Every trial has a seed of its own.

Kept in curves.npz: the negative log-probability of each eval record's label tokens at each report, as float16 with
MANTISSA_BITS of its mantissa; eval/loss is computed from what is kept, so that curves and statistics agree.
"""

from __future__ import annotations

import math
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from raytune_llm.evaluation.metrics import Array, Metric, mean, ratio
from raytune_llm.evaluation.terms import Better

FILE = Path(__file__).with_name("curves.npz")
SIZES, BATCH_SIZES = (1, 2, 4, 8, 16), (2, 4, 8)
RATES_EACH, LOWEST, HIGHEST = 12, 0.03, 10.0
STEPS, EVERY = 160, 10
MANTISSA_BITS = 7


@dataclass(frozen=True)
class Recorded:
    """Curves of C configurations with R reports on n eval records."""

    sizes: Array
    """Adapter sizes, (C,)."""
    batch_sizes: Array
    """(C,)"""
    rates: Array
    """Learning-rate multipliers, (C,)."""
    steps: Array
    """At which trials reported, (R,)."""
    sums: Array
    """Negative log-probability of each record's label tokens, nats, (C, R, n)."""
    weights: Array
    """Label tokens of each record, (n,)."""

    def loss(self, place: int, report: int) -> Metric:
        """eval/loss of a configuration at a report."""
        return ratio(self.sums[place, report], self.weights, Better.lower)

    def likely(self, place: int, report: int) -> Metric:
        """The share of records whose right answer has more than half of the probability, which makes it the greedy
        one."""
        return mean(self.sums[place, report] < math.log(2), Better.higher)

    def nearest(self, size: float, batch_size: float, rate: float) -> int:
        """The configuration nearest to a point of the space: of the same sizes, with the nearest learning rate."""
        distances = (
            np.abs(np.log2(self.sizes / size)) * 1e3
            + np.abs(np.log2(self.batch_sizes / batch_size)) * 1e3
            + np.abs(np.log(self.rates / rate))
        )
        return int(distances.argmin())


def load(file: Path = FILE) -> Recorded:
    with np.load(file) as found:
        return Recorded(
            **{name: found[name].astype(np.float64) for name in ("sizes", "batch_sizes", "rates", "steps", "weights")},
            sums=(found["high"].astype(np.uint16) << 8 | found["low"]).view(np.float16).astype(np.float64),
        )


def save(file: Path, recorded: Recorded) -> None:
    """Bytes of the two halves of the numbers apart from each other: they compress better so."""
    bits = recorded.sums.astype(np.float16).view(np.uint16)
    dropped = 10 - MANTISSA_BITS
    bits = (bits + (1 << (dropped - 1))) >> dropped << dropped
    columns = {name: getattr(recorded, name) for name in ("sizes", "batch_sizes", "rates", "steps", "weights")}
    halves = {"high": (bits >> 8).astype(np.uint8), "low": (bits & 255).astype(np.uint8)}
    np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in columns.items()}, **halves)


def configurations() -> list[tuple[int, int, float]]:
    """(adapter size, batch size, learning-rate multiplier), those of a batch size together."""
    draw, span = random.Random(0), math.log(HIGHEST / LOWEST)
    found = []
    for batch_size, size in product(BATCH_SIZES, SIZES):
        shift = draw.random()
        rates = [LOWEST * math.exp(span * (place + shift) / RATES_EACH) for place in range(RATES_EACH)]
        found += [(size, batch_size, rate) for rate in rates]
    return found


def record(file: Path, *, processes: int, steps: int = STEPS, num_packs: int | None = None) -> None:
    """Train all configurations, a cell of RATES_EACH to a pack; `num_packs`: only the first few."""
    wanted = configurations()[: None if num_packs is None else num_packs * RATES_EACH]
    packs = [wanted[start : start + RATES_EACH] for start in range(0, len(wanted), RATES_EACH)]
    jobs = [(place * RATES_EACH, pack, steps) for place, pack in enumerate(packs)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = []
        for sums, weights in pool.map(trained, *zip(*jobs, strict=True)):
            found.append(sums)
            print(f"{len(found)} of {len(packs)} packs", flush=True)
    sizes, batch_sizes, rates = (np.array(column, dtype=np.float64) for column in zip(*wanted, strict=True))
    reports = np.arange(EVERY, steps + 1, EVERY, dtype=np.float64)
    save(file, Recorded(sizes, batch_sizes, rates, reports, np.concatenate(found), weights))


def trained(first_seed: int, pack: list[tuple[int, int, float]], steps: int) -> tuple[Array, Array]:
    """The statistics of a pack's trials, (trials, reports, n), and their weights, (n,)."""
    import torch

    from raytune_llm.jobs.config import load as load_job
    from raytune_llm.jobs.prepare import prepare
    from raytune_llm.models.base import linear_targets
    from raytune_llm.training.config import Trial, TrialSpec
    from raytune_llm.training.packed.batches import PassBudget, TokenTable
    from raytune_llm.training.packed.hyperparameters import hyperparameters_of
    from raytune_llm.training.packed.pack import Pack
    from raytune_llm.training.packed.trials import MOST_CPU_TOKENS

    torch.set_num_threads(1)
    job = load_job("train", ["model=demo", "data=demo_sarcasm"])
    prepared = prepare(job)
    train, evaluation = (
        TokenTable(split, is_encoder_decoder=False)
        for split in (prepared.encoded.train.examples, prepared.encoded.eval.examples)
    )
    config = job.trial_config(prepared.better)
    base = job.model.load()
    budget = PassBudget(len(pack), MOST_CPU_TOKENS, 128)
    slots = Pack(base, linear_targets(base), capacity=len(pack), max_lora_rank=max(SIZES), budget=budget)
    for place, (size, batch_size, rate) in enumerate(pack):
        values = {
            "tuning.adapter_size": size,
            "tuning.batch_size": batch_size,
            "tuning.learning_rate_multiplier": rate,
            "seed": first_seed + place,
        }
        spec = TrialSpec(config=config.with_values(values), trial=Trial(id=f"{place:02d}", values={}), milestones=())
        slots.join(replace(hyperparameters_of(spec), trial_id=f"{place:02d}"), train, config.method.terms)
    reports = []
    for step in range(1, steps + 1):
        slots.step()
        if step % EVERY == 0:
            scores = slots.evaluate(evaluation)
            found = [scores[trial_id].resamplable()["eval/loss"].statistics for trial_id in sorted(scores)]
            reports.append([statistics[:, 0] for statistics in found])
    return np.array(reports).swapaxes(0, 1), found[0][:, 1]
