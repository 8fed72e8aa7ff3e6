"""A base and models tuned from it, measured on the same records: the loss of given answers, and the answers generated.

LoRA adapters of one base answer together: the base is loaded once, one decoding step serves all of them, and a prompt
that begins its example is read once, for the loss and the answer. Equal prompts are answered once. What can't lie on
one base (fully tuned models, DoRA, encoder-decoder bases …) is loaded and measured one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers.cache_utils import DynamicCache

from raytune_llm.data.examples import Example
from raytune_llm.evaluation.generate import answer_text, check_prompts, generate
from raytune_llm.evaluation.loss import Scores, ScoreTable, Terms, evaluate
from raytune_llm.models.adapter_set import stack_of
from raytune_llm.models.base import Base, skeleton
from raytune_llm.models.batches import run_batches
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.forward import inference, outputs
from raytune_llm.models.loading import fetched, load_model
from raytune_llm.models.lora_folder import read_scaled_weights, stackable_config
from raytune_llm.models.lora_weights import Weights
from raytune_llm.models.stacked_lora import AdapterStack

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


def score_systems(
    base: Base,
    systems: Systems,
    examples: Sequence[Example],
    terms: Terms,
    *,
    pad_id: int,
    batch_size: int,
    use_gpu: bool,
) -> dict[str, Scores]:
    """The terms of each system over examples, by name. Raises InputError when an adapter doesn't fit the base."""
    score = partial(evaluate, examples=examples, terms=terms, pad_id=pad_id, batch_size=batch_size)
    adapters = _stackable(base, systems)
    if adapters is None:
        return {name: score(load_model(base, location, use_gpu=use_gpu)) for name, location in systems.items()}
    model = load_model(base, None, use_gpu=use_gpu)
    stack, slots = _stacked(model, adapters)
    found = {}
    for name, slot in slots.items():
        with _routed(stack, slot):
            found[name] = score(model)
    return found


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
    stack, slots = _stacked(model, adapters)
    distinct = {tuple(prompt): place for place, prompt in enumerate(task.prompts)}
    reader = _ScoringReader(model, task, [*distinct.values()], len(slots))
    found = greedy_answers(
        model,
        [list(prompt) for prompt in distinct] * len(slots),
        [slot for slot in slots.values() for _ in distinct],
        stack=stack,
        stop_ids=task.stop_ids,
        max_new_tokens=task.max_new_tokens,
        max_rows=task.batch_size * len(slots),
        reader=reader,
    )
    texts = iter([answer_text(task.tokenizer, answer) for answer in found])
    measured = {}
    for place, (name, slot) in enumerate(slots.items()):
        with _routed(stack, slot):
            scores = reader.scores(place)
        answers = {prompt: next(texts) for prompt in distinct}
        measured[name] = Measured(scores, [answers[tuple(prompt)] for prompt in task.prompts])
    return measured


def _stacked(model: Any, adapters: Mapping[str, Weights | None]) -> tuple[AdapterStack | None, dict[str, int | None]]:
    """(the adapters on their base, None without any; the slot of each system's, None for the base)."""
    held = {name: weights for name, weights in adapters.items() if weights is not None}
    slots = {name: list(held).index(name) if name in held else None for name in adapters}
    return (stack_of(model, list(held.values())) if held else None), slots


def _routed(stack: AdapterStack | None, slot: int | None) -> AbstractContextManager[None]:
    """Forward passes inside go through a slot's adapter; through the base alone without one."""
    return nullcontext() if stack is None or slot is None else stack.routed(stack.span(slot, slot + 1))


class _ScoringReader:
    """Scores all examples of all systems, those that their prompts begin while the prompts are read."""

    def __init__(self, model: Any, task: Task, asked: Sequence[int], num_systems: int) -> None:
        """asked: places of the prompts that every system answers, in their order."""
        self._model, self._task = model, task
        self._size = len(task.examples)
        self._table = ScoreTable([*task.examples] * num_systems, task.terms)
        begun = {name: _begun(task, name) for name in task.examples[0]}
        self._name = max(begun, key=lambda name: len(begun[name]))
        places = begun[self._name]
        self._others = sorted(set(range(self._size)) - (places & set(asked)))
        self._asked = [system * self._size + place for system in range(num_systems) for place in asked]
        self.lengths: Mapping[int, int] = {
            i: self._length(place) for i, place in enumerate(self._asked) if place % self._size in places
        }

    def read(self, places: Sequence[int]) -> DynamicCache:
        """The keys and values of the examples that begin with these of the asked prompts."""
        cache = DynamicCache()
        self._score([self._asked[place] for place in places], cache)
        return cache

    def scores(self, system: int) -> Scores:
        """Of a system, by its number, when all that it is asked was read; where the model takes its adapter."""
        start = system * self._size
        others = [start + place for place in self._others]
        with inference(self._model):
            lengths = [self._length(place) for place in others]
            run_batches(lengths, self._task.batch_size, lambda batch: self._score([others[i] for i in batch], None))
        return self._table.scores(slice(start, start + self._size))

    def _score(self, places: Sequence[int], cache: DynamicCache | None) -> None:
        """Score the examples at these places of the table, and fill the cache with what the prompts begin."""
        examples = [self._task.examples[place % self._size] for place in places]
        found = {}
        for name in examples[0]:
            filled = cache if name == self._name else None
            sequences = [example[name] for example in examples]
            found[name] = outputs(self._model, sequences, pad_id=self._task.tokenizer.pad_token_id, cache=filled)
        self._table.add(places, found)

    def _length(self, place: int) -> int:
        return len(self._task.examples[place % self._size][self._name].input_ids)


def _begun(task: Task, name: str) -> set[int]:
    """Places of the examples whose sequence of that name begins with the prompt, of two tokens or more."""
    both = enumerate(zip(task.prompts, task.examples, strict=True))
    return {
        place
        for place, (prompt, example) in both
        if len(prompt) > 1 and example[name].input_ids[: len(prompt)] == prompt
    }


def _scores(model: Any, task: Task) -> Scores:
    return evaluate(model, task.examples, task.terms, pad_id=task.tokenizer.pad_token_id, batch_size=task.batch_size)
