"""A pack: slots of one resident base, each trained by its own optimizer step on its own examples.

    loss of a slot = Σ_terms coefficient · Σ sum / Σ weight,   sums over the slot's whole step, however it was split

Slots live in rows 0..n of preallocated tables. They join and leave between steps; the rows of those that stay may
move, their values don't change. Left out: which trials run when (the caller), and how much to run at once (planner.py
sets `budget`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raytune_llm.data.order import data_order
from raytune_llm.evaluation.loss import Scores
from raytune_llm.models.adapter_route import Route
from raytune_llm.models.lora_weights import Weights, initial_weights
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
from raytune_llm.training.packed.adapted_base import AdaptedBase
from raytune_llm.training.packed.batches import MicroPack, PassBudget, StepRows, Terms, TokenTable, split_step
from raytune_llm.training.packed.checkpointing import num_blocks
from raytune_llm.training.packed.dropout import resume_stream, slot_noise
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.losses import StepLosses
from raytune_llm.training.packed.scoring import score
from raytune_llm.training.packed.slot import Slot, StepReport
from raytune_llm.training.packed.snapshot import Snapshot, take_snapshot
from raytune_llm.training.packed.trial_state import TrialState

INITIAL_WEIGHTS_KEPT = 4
"""Trials of one rank and seed start from the same weights, which take seconds to draw for a large base."""
SMALLEST_EVAL_PASS = 4096
"""Tokens: evaluation runs passes of this size, or of the last step's largest pass if that is larger."""


class Pack(AdaptedBase):
    """Up to `capacity` trials on the layers of a base."""

    def __init__(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        *,
        capacity: int,
        max_lora_rank: int,
        budget: PassBudget,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, names, capacity=capacity, max_lora_rank=max_lora_rank, compiled=compiled)
        self.budget = budget
        self._initial_weights = lru_cache(INITIAL_WEIGHTS_KEPT)(
            lambda lora_rank, seed: initial_weights(model, names, lora_rank=lora_rank, seed=seed)
        )
        self._slots: list[Slot] = []
        self.num_passes = 0
        """Passes through the model in the last step or probe."""
        self.padded_tokens = 0
        """Tokens that went through it, padding counted."""
        self._largest_pass = SMALLEST_EVAL_PASS
        self._most_eval_tokens = 1 << 62
        """What memory has been found to hold in an evaluation."""
        self._attempted: MicroPack | None = None
        """What went through the model last in this step."""

    @property
    def trial_ids(self) -> list[str]:
        return [slot.spec.trial_id for slot in self._slots]

    def steps_done(self, trial_id: str) -> int:
        """Optimizer steps of a trial so far."""
        return self._slots[self._row(trial_id)].step

    @property
    def longest(self) -> int:
        """Tokens of the longest example of any slot."""
        return max(int(slot.table.lengths.max()) for slot in self._slots)

    # Membership

    def join(
        self,
        spec: Hyperparameters,
        table: TokenTable,
        terms: Terms,
        *,
        weights: Weights | None = None,
        state: TrialState | None = None,
    ) -> None:
        """Add a trial: from its seed's initial adapter, from `weights`, or from a saved `state`.

        Raises ValueError when the pack is full, the id is taken, or weights or state don't fit.
        """
        row = len(self._slots)
        if row == self.capacity:
            raise ValueError(f"the pack's {self.capacity} slots are taken; {spec.trial_id} must wait for one to leave")
        if spec.trial_id in self.trial_ids:
            raise ValueError(f"trial {spec.trial_id} is in the pack already")
        generator = torch.Generator(self.stack.device).manual_seed(spec.seed)
        heads = self.head.initial()
        if state is not None:
            weights, heads = state.adapter("theta", self.names), state.heads("theta", heads)
            resume_stream(generator, state.tensors["generator"], seed=spec.seed + state.step)
        elif weights is None:
            weights = self._initial_weights(spec.lora_rank, spec.seed)
        lora_rank = next(iter(weights.values()))[0].shape[0]
        if lora_rank != spec.lora_rank:
            raise ValueError(f"trial {spec.trial_id} has lora_rank={spec.lora_rank}, its weights have {lora_rank}")
        self.stack.write(row, weights, spec.scale, heads)
        self.optimizer.clear(row)
        if state is not None:
            self._restore_moments(row, state, heads)
        step = 0 if state is None else state.step
        order = data_order(table.epoch(subset=spec.subset, weights=spec.weights, seed=spec.seed), spec.seed)
        next(islice(order, step * spec.batch_size, step * spec.batch_size), None)
        self._slots.append(Slot(spec, table, terms, self._weights(table, terms), generator, step, order))
        self._arrange()

    def _restore_moments(self, row: int, state: TrialState, heads: Iterable[str]) -> None:
        layout, dtype = self.stack.layout, self.theta.dtype
        for key, moments in (("m", self.optimizer.m), ("v", self.optimizer.v)):
            packed = layout.pack(state.adapter(key, self.names), dtype, state.heads(key, heads))
            moments[row].copy_(packed)

    def leave(self, trial_id: str) -> None:
        """Free a trial's slot. Take its `state` or `weights` before."""
        row = self._row(trial_id)
        last = len(self._slots) - 1
        self._swap(row, last)
        self._slots.pop()
        self.stack.clear(last)
        self.optimizer.clear(last)
        self._arrange()

    def state(self, trial_id: str) -> TrialState:
        """A copy of a trial, on the CPU."""
        return self.snapshot(trial_id, moments=True).state()

    def snapshot(self, trial_id: str, *, moments: bool) -> Snapshot:
        """A trial's rows as they are now, copied to the host without waiting for the device."""
        row = self._row(trial_id)
        tables = {"theta": self.theta, **({"m": self.optimizer.m, "v": self.optimizer.v} if moments else {})}
        return take_snapshot(self._slots[row], self.stack.layout, {key: table[row] for key, table in tables.items()})

    def weights(self, trial_id: str) -> Weights:
        """A trial's adapter, on the CPU, in fp32 (fp64)."""
        return self.snapshot(trial_id, moments=False).weights()

    def heads(self, trial_id: str) -> dict[str, Tensor]:
        """What a trial trained in addition to its adapter, flat, on the CPU, in fp32 (fp64)."""
        return self.snapshot(trial_id, moments=False).heads()

    # Training

    def step(self) -> dict[str, StepReport]:
        """One optimizer step of every slot. Out of memory, it is done again in smaller passes; where one can't be
        split, by recomputing activations."""
        slots = self._slots
        indices = [np.fromiter(islice(slot.order, slot.spec.batch_size), dtype=np.int64) for slot in slots]
        streams = [slot.generator.get_state() if slot.spec.dropout else None for slot in slots]
        while True:
            try:
                losses = self._gradients(indices)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self._takes_less_memory():
                    raise
            free_cached_memory()
            for slot, stream in zip(slots, streams, strict=True):
                if stream is not None:
                    slot.generator.set_state(stream)
        specs, steps = [slot.spec for slot in slots], [slot.step for slot in slots]
        norms = self.optimizer.step(self.theta, self.grad, specs, steps)
        self.stack.refresh(0, len(slots))
        reports = {}
        # only here does the host wait for the device
        for slot, rows, values, norm in zip(slots, indices, losses.metrics(), norms.tolist(), strict=True):
            rate, num_tokens = slot.spec.rate(slot.step), int(slot.table.lengths[rows].sum())
            slot.step += 1
            reports[slot.spec.trial_id] = StepReport(slot.step, values, norm, rate, num_tokens)
        return reports

    def _takes_less_memory(self) -> bool:
        """Make the next try's passes half of the one that was attempted, or recompute its activations; False when
        nothing is left to try."""
        attempted = self._attempted
        if attempted is not None and not attempted.is_whole:
            self.budget = replace(self.budget, max_tokens=max(1, attempted.padded_tokens // 2))
            return True
        if self.checkpointing or not num_blocks(self.model):
            return False
        self.checkpointing = True
        return True

    def probe(self, num_rows: int) -> int:
        """Run this many examples of the first slot forward and backward in one pass, to time it, and wait for its end;
        changes no trial. Returns their padded tokens."""
        slot, rows = self._slots[0], np.arange(num_rows) % self._slots[0].table.num_examples
        stream = slot.generator.get_state()
        micro_pack = MicroPack([0], slot.table, rows[None], is_whole=num_rows == 1)
        try:
            self._backward(micro_pack, StepLosses([dict.fromkeys(slot.weights, 1.0)]))
        finally:
            slot.generator.set_state(stream)
        self.grad[0].sum().item()
        self.num_passes, self.padded_tokens = 1, micro_pack.padded_tokens
        return micro_pack.padded_tokens

    def _gradients(self, indices: Sequence[np.ndarray]) -> StepLosses:
        """Fill grad for one step of every slot; returns their losses."""
        self.grad[: len(self._slots)].zero_()
        weights, steps = [], []
        for row, (slot, rows) in enumerate(zip(self._slots, indices, strict=True)):
            weights.append({name: float(weight[rows].sum()) for name, weight in slot.weights.items()})
            steps.append(StepRows(row, slot.table, rows, slot.spec.rows_per_pass))
        losses = StepLosses(weights)
        self.num_passes = self.padded_tokens = 0
        self._largest_pass, self._attempted = SMALLEST_EVAL_PASS, None
        for micro_pack in split_step(steps, self.budget):
            self._attempted = micro_pack
            self._backward(micro_pack, losses)
            self.num_passes += 1
            self.padded_tokens += micro_pack.padded_tokens
            self._largest_pass = max(self._largest_pass, micro_pack.padded_tokens)
        self.stack.scale_grad(len(self._slots))
        return losses

    def _backward(self, micro_pack: MicroPack, losses: StepLosses) -> None:
        slots, table = micro_pack.slots, micro_pack.table
        route, gathered = self._route(slots)
        outputs = {}
        has_dropout = self._slots[slots[0]].spec.rows_per_pass is not None
        share_among = len(slots) if self.head.shares_prefix and not has_dropout else None
        for name in table.names:
            batch = table.batch(name, micro_pack.rows.ravel(), self.stack.device, share_among=share_among)
            noise = slot_noise([self._slots[slot] for slot in slots], batch, replayable=self.checkpointing)
            with self.stack.routed(replace(route, noise=noise)):
                outputs[name] = self.head.outputs(batch)
        losses.add(slots, [self._slots[slot].terms for slot in slots], outputs).backward()
        if gathered is not None:
            self.stack.scatter_grad(slots, gathered)

    def _route(self, slots: Sequence[int]) -> tuple[Route, Tensor | None]:
        """The route through these rows, and where its gradients gather when they aren't adjacent."""
        if slots[-1] - slots[0] + 1 == len(slots):
            return self.stack.span(slots[0], slots[-1] + 1), None
        return self.stack.gather(slots)

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self, table: TokenTable, trial_ids: Sequence[str] | None = None, terms: Terms | None = None
    ) -> dict[str, Scores]:
        """Scores of these trials (None = all) on all of a table's examples, by `terms` (None = each trial's own); every
        batch is shared by all of them. When memory runs out, it begins again with smaller passes."""
        rows = list(range(len(self._slots))) if trial_ids is None else sorted(map(self._row, trial_ids))
        while True:
            limits = (self.budget.max_tokens, self._largest_pass, self._most_eval_tokens)
            budget = replace(self.budget, max_tokens=min(limits))
            try:
                return self._evaluate(table, rows, budget, terms)
            except RuntimeError as error:
                if not is_out_of_memory(error) or budget.max_tokens <= int(table.lengths.max()):
                    raise
                self._most_eval_tokens = budget.max_tokens // 2
            free_cached_memory()

    def _evaluate(
        self, table: TokenTable, rows: Sequence[int], budget: PassBudget, terms: Terms | None
    ) -> dict[str, Scores]:
        at_once = max(1, min(budget.slots_per_pass, budget.max_tokens // int(table.lengths.max())))
        found: dict[str, Scores] = {}
        for start in range(0, len(rows), at_once):
            slots = [self._slots[row] for row in rows[start : start + at_once]]
            with self.stack.routed(self._route(rows[start : start + at_once])[0]):
                of_slots = [terms or slot.terms for slot in slots]
                scores = score(self.head, table, of_slots, budget, self.stack.device)
            found |= {slot.spec.trial_id: scored for slot, scored in zip(slots, scores, strict=True)}
        return found

    # Rows

    def _row(self, trial_id: str) -> int:
        for row, slot in enumerate(self._slots):
            if slot.spec.trial_id == trial_id:
                return row
        raise ValueError(f"trial {trial_id} is not in the pack; it holds {self.trial_ids}")

    def _arrange(self) -> None:
        """Bring slots that can share a pass next to each other, and among those the ones of like rank."""
        shapes = [slot.shape for slot in self._slots]
        wanted = sorted(self._slots, key=lambda slot: (shapes.index(slot.shape), slot.spec.lora_rank))
        for row, slot in enumerate(wanted):
            self._swap(row, self._slots.index(slot))

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        for table in (self.theta, self.stack.scales, self.optimizer.m, self.optimizer.v):
            kept = table[one].clone()
            table[one].copy_(table[other])
            table[other].copy_(kept)
        for items in (self.stack.lora_ranks, self._slots):
            _exchange(items, one, other)
        self.stack.refresh(one, one + 1)
        self.stack.refresh(other, other + 1)

    def _weights(self, table: TokenTable, terms: Terms) -> dict[str, np.ndarray]:
        """Each example's weights; shared with a slot that has them."""
        for slot in self._slots:
            if slot.table is table and slot.terms == terms:
                return slot.weights
        return table.weights(terms)


def _exchange(items: list[Any], one: int, other: int) -> None:
    items[one], items[other] = items[other], items[one]
