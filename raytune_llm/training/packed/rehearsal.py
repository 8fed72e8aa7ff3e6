"""A pack rehearsed before its trials come: steps by its planner, an evaluation, answers, a report's files. Trials of
the largest kind join all slots and leave them again; what the planner has learned of the base is kept.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from raytune_llm.methods.common.drift import drift_terms
from raytune_llm.models.memory import peak_bytes
from raytune_llm.training.config import Trial, TrialSpec
from raytune_llm.training.packed.export import SlotSaver
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.rehearsal import Answered, Asked, Memory, Rehearsal, Script, device_name
from raytune_llm.training.rehearsed_answers import rehearse_answers
from raytune_llm.training.tracking.base import CompositeRun

MOST_STEPS = 5
"""Settled steps that are measured for each number of trials."""
PATIENCE = 4.0
"""Times the limit that the planner may take to choose."""
EVALUATION_SHARE = 0.4
"""Of the limit, that the last but one of the parts of the eval set takes at most."""
GROWTH = 4.0
"""Times as many eval examples in the next part, at most."""


def rehearse(packed: PackedTrials, script: Script, *, start_seconds: float) -> Rehearsal:
    """What the trials of a script will take in this pack, which has none yet."""
    started = time.monotonic()
    ids = _join(packed, script.spec)
    try:
        steps: dict[int, float] = {}
        evaluations: dict[int, float] = {}
        limit = script.limit(0.0)
        for count in dict.fromkeys((len(ids), -(-len(ids) // 2), 1)):
            for id in packed.pack.trial_ids[count:]:
                packed.leave(id)
            steps[count] = _step_seconds(packed, limit / 2)
            if count == len(ids):
                limit = script.limit(steps[count] / count)
            if count in (1, len(ids)):
                evaluations[count] = _evaluation_seconds(packed, limit)
        checkpoint_seconds = _checkpoint_seconds(packed)
        answering, comparing = _answers(packed, script.asked, limit)
        memory = _memory(packed)
    finally:
        for id in list(packed.trials):
            packed.leave(id)
    return Rehearsal(
        source="measured",
        device=device_name(packed.pack.stack.device.type == "cuda"),
        start_seconds=start_seconds,
        load_seconds=packed.load_seconds,
        steps=steps,
        evaluations=evaluations,
        checkpoint_seconds=checkpoint_seconds,
        answering=answering,
        comparing=comparing,
        capacity=len(ids),
        memory=memory,
        spent_seconds=time.monotonic() - started,
    )


def _join(packed: PackedTrials, spec: TrialSpec) -> list[str]:
    """Trials in all slots, or as many as memory holds; their ids. Nothing of them is logged or stored."""
    for place in range(packed.capacity):
        _, ended = packed.join(replace(spec, trial=Trial(id=f"rehearsal{place}", values={})), CompositeRun(()))
        if ended is not None:
            break
    return list(packed.pack.trial_ids)


def _step_seconds(packed: PackedTrials, limit: float) -> float:
    """Seconds of a step of the trials that are in, once the planner has chosen how it is split."""
    started, unsettled, settled = time.monotonic(), list[float](), list[float]()
    planner = packed.planner()
    planner.step()  # the first allocates, and may compile
    while len(settled) < MOST_STEPS:
        before = time.monotonic()
        patience = limit if settled else PATIENCE * limit
        if (settled or unsettled) and before > started + patience:
            break
        planner.step()
        (settled if planner.is_settled else unsettled).append(time.monotonic() - before)
    return median(settled) if settled else min(unsettled)


def _evaluation_seconds(packed: PackedTrials, limit: float) -> float:
    """Seconds of an evaluation of the trials that are in on all eval examples: what further tokens take from a small
    part of them to a larger one, until that takes a share of the limit. Each pass has costs that don't depend on its
    tokens, which would weigh too much in a small part."""
    total, most = int(packed.eval.lengths.sum()), EVALUATION_SHARE * limit
    count = min(trial.spec.config.tuning.batch_size for trial in packed.trials.values())
    _evaluate(packed, count)  # the first allocates
    tokens, seconds = _evaluate(packed, count)
    each = seconds / tokens
    while tokens < total and seconds < most:
        count = int(count * min(GROWTH, max(2.0, 2 * most / seconds)))
        more_tokens, more_seconds = _evaluate(packed, count)
        each = max(0.0, more_seconds - seconds) / (more_tokens - tokens)
        tokens, seconds = more_tokens, more_seconds
    return seconds + each * (total - tokens) + _drift_seconds(packed)


def _drift_seconds(packed: PackedTrials) -> float:
    """Seconds of an evaluation's measuring of drift, where it does."""
    if packed.guard is None:
        return 0.0
    started = time.monotonic()
    packed.pack.evaluate(packed.guard, packed.pack.trial_ids, drift_terms)
    return time.monotonic() - started


def _evaluate(packed: PackedTrials, count: int) -> tuple[int, float]:
    """(tokens, seconds) of an evaluation on so many eval examples, at even distances, or on all there are."""
    num_examples = len(packed.eval.lengths)
    rows = np.unique(np.linspace(0, num_examples - 1, min(num_examples, count)).astype(np.int64))
    part = packed.eval if len(rows) == num_examples else packed.eval.part(rows)
    started = time.monotonic()
    packed.pack.evaluate(part, packed.pack.trial_ids)
    return int(part.lengths.sum()), time.monotonic() - started


def _checkpoint_seconds(packed: PackedTrials) -> float:
    """Seconds of writing a trial's adapter."""
    spec = packed.config
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        snapshot = packed.pack.snapshot(packed.pack.trial_ids[0], moments=False)
        SlotSaver(snapshot, packed.lora_config, spec.model.name_or_path).save_weights(Path(folder, "best"))
    return time.monotonic() - started


def _answers(packed: PackedTrials, asked: Asked | None, limit: float) -> tuple[Answered | None, Answered | None]:
    """What answering takes: as trials do, where they are chosen by their answers, and as the comparison does."""
    config, pack = packed.config, packed.pack
    if config.answering is None and asked is None:
        return None, None
    tokenizer = config.model.tokenizer()
    by_trials = None
    if config.answering is not None:
        own = Asked(
            prompts=config.answering.prompts,
            stop_ids=config.answering.stop_ids,
            max_new_tokens=config.answering.max_new_tokens,
            batch_size=config.eval_batch_size,
            threads=torch.get_num_threads(),
        )
        by_trials = rehearse_answers(pack.model, tokenizer, own, stack=pack.stack, limit=limit / 2)
    compared = None if asked is None else rehearse_answers(pack.model, tokenizer, asked, stack=pack.stack, limit=limit)
    return by_trials, compared


def _memory(packed: PackedTrials) -> Memory:
    """What the process holds for the base and its slots."""
    base = sum(parameter.nbytes for parameter in packed.model.parameters())
    return Memory(
        base=base,
        slots=packed.pack.num_bytes,
        others=packed.memory_before,
        peak=peak_bytes(packed.pack.stack.device),
        free=packed.free_bytes + base,
    )
