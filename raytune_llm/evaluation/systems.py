"""A base and models tuned from it, measured on the same records: the loss of given answers, and the answers generated.

LoRA adapters of one base answer together: the base is loaded once, equal prompts are read in one pass, and one decoding
step serves all of them. What can't lie on one base (fully tuned models, DoRA, encoder-decoder bases …) is loaded and
measured one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from raytune_llm.data.examples import Example
from raytune_llm.evaluation.generate import answer_text, check_prompts, generate
from raytune_llm.evaluation.loss import Scores, Terms, evaluate
from raytune_llm.models.adapter_set import stack_of
from raytune_llm.models.base import Base, skeleton
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.loading import fetched, load_model
from raytune_llm.models.lora_folder import read_scaled_weights, stackable_config
from raytune_llm.models.lora_weights import Weights

Systems = Mapping[str, str | None]
"""Name → folder or URI of a tuned model, None for the base itself."""


@dataclass(frozen=True)
class Task:
    """What every system is measured on."""

    examples: Sequence[Example]
    terms: Terms
    prompts: Sequence[list[int]]
    tokenizer: Any
    stop_ids: Sequence[int]
    """Tokens that end an answer."""
    max_new_tokens: int
    batch_size: int
    """Examples, or prompts, of one system at once."""


@dataclass(frozen=True)
class Measured:
    """One system on a task."""

    scores: Scores
    completions: list[str]
    """The answer to each prompt, as `generate` gives it."""


def measure_systems(base: Base, systems: Systems, task: Task, *, use_gpu: bool) -> dict[str, Measured]:
    """Each system on the task, by name. Raises InputError when an adapter doesn't fit the base, and as `generate` and
    `evaluate` do."""
    adapters = _stackable(base, systems)
    if adapters is not None:
        return _together(load_model(base, None, use_gpu=use_gpu), adapters, task)
    return {name: _alone(load_model(base, location, use_gpu=use_gpu), task) for name, location in systems.items()}


def _stackable(base: Base, systems: Systems) -> dict[str, Weights | None] | None:
    """The adapter of each system, None for the base; None when they can't all lie on one base."""
    model = skeleton(base)
    if base.is_quantized or not can_batch(model):
        return None
    found: dict[str, Weights | None] = {}
    for name, location in systems.items():
        if location is None:
            found[name] = None
            continue
        with fetched(location) as folder:
            config = stackable_config(folder, model)
            if config is None:
                return None
            found[name] = read_scaled_weights(folder, config, model, name)
    return found


def _alone(model: Any, task: Task) -> Measured:
    """A model by itself."""
    scores = _scores(model, task)
    texts = generate(
        model,
        task.tokenizer,
        task.prompts,
        max_new_tokens=task.max_new_tokens,
        stop_ids=task.stop_ids,
        batch_size=task.batch_size,
    )
    return Measured(scores, texts)


def _together(model: Any, adapters: Mapping[str, Weights | None], task: Task) -> dict[str, Measured]:
    """A base with the adapters of all systems on it; None is the base as it is."""
    check_prompts(task.prompts, task.max_new_tokens, model.config)
    held = {name: weights for name, weights in adapters.items() if weights is not None}
    stack = stack_of(model, list(held.values())) if held else None
    slots = {name: list(held).index(name) if name in held else None for name in adapters}
    scores = {}
    for name, slot in slots.items():
        with nullcontext() if stack is None or slot is None else stack.routed(stack.span(slot, slot + 1)):
            scores[name] = _scores(model, task)
    found = greedy_answers(
        model,
        [*task.prompts] * len(slots),
        [slot for slot in slots.values() for _ in task.prompts],
        stack=stack,
        stop_ids=task.stop_ids,
        max_new_tokens=task.max_new_tokens,
        max_rows=task.batch_size * len(slots),
    )
    texts = iter([answer_text(task.tokenizer, answer) for answer in found])
    return {name: Measured(scores[name], list(islice(texts, len(task.prompts)))) for name in adapters}


def _scores(model: Any, task: Task) -> Scores:
    return evaluate(model, task.examples, task.terms, pad_id=task.tokenizer.pad_token_id, batch_size=task.batch_size)
