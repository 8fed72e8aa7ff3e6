"""Learning curves of real trials with every eval record's statistics, recorded once so that sweeps can be replayed.

Trials are trained in packs, without Ray, on the embedded base and its sarcasm data (1,000 records, 256 to evaluate
on): each cell of adapter size × batch size has 12 learning rates, spread evenly over log [0.03, 10] times the
recommended one and shifted at random. Every trial has a seed of its own.

Kept in curves.npz: the negative log-probability of each eval record's label tokens at each report, as float16 with
MANTISSA_BITS of its mantissa; eval/loss is computed from what is kept, so that curves and statistics agree.
"""

from __future__ import annotations

import math
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from raytune_llm.evaluation.metrics import Array, Metric, mean, ratio
from raytune_llm.evaluation.terms import Better
from raytune_llm.training.config import Trial, TrialConfig, TrialSpec
from raytune_llm.training.packed.hyperparameters import Hyperparameters, hyperparameters_of

FILE = Path(__file__).with_name("curves.npz")
SIZES, BATCH_SIZES = (1, 2, 4, 8, 16), (2, 4)
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


def record(file: Path, *, processes: int) -> None:
    """Train all configurations, a cell of RATES_EACH to a pack."""
    wanted = configurations()
    packs = [wanted[start : start + RATES_EACH] for start in range(0, len(wanted), RATES_EACH)]
    seeds = range(0, len(wanted), RATES_EACH)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        statistics = np.concatenate(list(pool.map(trained, packs, seeds)))
    sizes, batch_sizes, rates = (np.array(column, dtype=np.float64) for column in zip(*wanted, strict=True))
    reports = np.arange(EVERY, STEPS + 1, EVERY, dtype=np.float64)
    save(file, Recorded(sizes, batch_sizes, rates, reports, statistics[..., 0], statistics[0, 0, :, 1]))


def trained(pack: list[tuple[int, int, float]], first_seed: int, steps: int = STEPS) -> Array:
    """What eval/loss is of each record at each report of a pack's trials: (trials, reports, n, 2)."""
    import torch

    from raytune_llm.jobs.config import load as load_job
    from raytune_llm.jobs.prepare import prepare
    from raytune_llm.models.base import linear_targets
    from raytune_llm.training.packed.batches import PassBudget, TokenTable
    from raytune_llm.training.packed.pack import Pack
    from raytune_llm.training.packed.trials import MOST_CPU_TOKENS

    torch.set_num_threads(1)
    job = load_job("train", ["model=demo", "data=demo_sarcasm"])
    prepared = prepare(job)
    splits = prepared.encoded.train.examples, prepared.encoded.eval.examples
    train, evaluation = (TokenTable(split, is_encoder_decoder=False) for split in splits)
    base = job.model.load()
    budget = PassBudget(len(pack), MOST_CPU_TOKENS, 128)
    slots = Pack(base, linear_targets(base), capacity=len(pack), max_lora_rank=max(SIZES), budget=budget)
    ids = [f"{first_seed + place}" for place in range(len(pack))]
    for id, values in zip(ids, pack, strict=True):
        slots.join(hyperparameters(job.trial_config(prepared.better), id, *values), train, job.method.terms)
    reports = []
    for step in range(1, steps + 1):
        slots.step()
        if step % EVERY == 0:
            scores = slots.evaluate(evaluation)
            reports.append([scores[id].resamplable()["eval/loss"].statistics for id in ids])
    print(f"trained {len(pack)} configurations from the {first_seed + 1}th on", flush=True)
    return np.array(reports).swapaxes(0, 1)


def hyperparameters(config: TrialConfig, id: str, size: int, batch_size: int, rate: float) -> Hyperparameters:
    """Those of a configuration, with its id as its seed."""
    values = {
        "tuning.adapter_size": size,
        "tuning.batch_size": batch_size,
        "tuning.learning_rate_multiplier": rate,
        "seed": int(id),
    }
    spec = TrialSpec(config=config.with_values(values), trial=Trial(id=id, values=values), milestones=())
    return hyperparameters_of(spec)
