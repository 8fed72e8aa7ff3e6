"""Does the tuned model do better than its base, by more than chance? Both answer the same records; the bootstrap
decides.

Runs wherever it is called: on the driver for a small base, in a Ray task with a GPU for a large one.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytune_llm.data.records import Chat, Message, Preference, Rationale, Record, Supervised, Text
from raytune_llm.data.tokens import Tokens
from raytune_llm.evaluation.compare import Comparison, compare
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.metrics import Confusion, Metric, answers, label_set
from raytune_llm.evaluation.report import Sample
from raytune_llm.job import Evaluation
from raytune_llm.method import Example, Method
from raytune_llm.models.adapter import load_tuned
from raytune_llm.models.base import Base
from raytune_llm.storage import open_storage


@dataclass(frozen=True)
class Proof:
    """A comparison with what a reader wants to see of it."""

    comparison: Comparison
    samples: list[Sample]
    confusions: dict[str, Confusion] | None


@dataclass(frozen=True)
class Question:
    """A record to be answered: its loss example, its prompt as fed to generation, its reference answer."""

    example: Example
    prompt: Text
    prompt_ids: list[int]
    reference: str


def prove(
    base: Base,
    method: Method,
    systems: Mapping[str, str | None],
    records: Sequence[Record],
    evaluation: Evaluation,
    *,
    max_tokens: int,
    seed: int,
    use_gpu: bool,
) -> Proof:
    """Compare systems (name → folder or URI of a tuned model, None for the base itself) on records.

    Raises ValueError when no record can be asked.
    """
    tokens = Tokens(base.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=base.facts.is_encoder_decoder)
    max_new_tokens = min(evaluation.max_new_tokens, max_tokens // 2)
    asked = questions(drawn(records, evaluation.max_examples, seed), method, tokens, max_new_tokens)
    if not asked:
        raise ValueError(f"none of the {len(records)} records has an answer to compare with")
    references = [question.reference for question in asked]
    metrics: dict[str, dict[str, Metric]] = {}
    said: dict[str, list[str]] = {}
    for name, folder in systems.items():
        model = load(base, folder)
        model = model.to("cuda") if use_gpu else model
        scores = evaluate(
            model,
            [question.example for question in asked],
            method.terms,
            pad_id=tokens.tokenizer.pad_token_id,
            batch_size=evaluation.batch_size,
        )
        said[name] = generate(
            model,
            tokens.tokenizer,
            [question.prompt_ids for question in asked],
            max_new_tokens=max_new_tokens,
            stop_ids=tokens.stop_ids(),
            batch_size=evaluation.batch_size,
        )
        metrics[name] = {**scores.resamplable(), **answers(references, said[name])}
    labels = label_set(references)
    return Proof(
        compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed),
        [
            Sample(plain(question.prompt), question.reference, {name: texts[i] for name, texts in said.items()})
            for i, question in enumerate(asked[: evaluation.num_samples])
        ],
        {name: Confusion.of(references, texts, labels) for name, texts in said.items()} if labels else None,
    )


def load(base: Base, folder: str | None) -> Any:
    """The base, or the tuned model of a folder or URI, in eval mode."""
    if folder is None:
        return base.load().eval()
    with fetched(folder) as local:
        return load_tuned(local, base)


@contextmanager
def fetched(folder: str) -> Iterator[Path]:
    """All files of a folder or URI as a local folder, for as long as the context lasts."""
    storage = open_storage(folder)
    with tempfile.TemporaryDirectory(prefix="fetched-") as scratch:
        for name in storage.files(""):
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download(name, target)
        yield Path(scratch)


def drawn(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """At most `count` records, the same ones for the same seed."""
    if count is None or count >= len(records):
        return list(records)
    return random.Random(seed).sample(list(records), count)


def questions(records: Sequence[Record], method: Method, tokens: Tokens, max_new_tokens: int) -> list[Question]:
    """The records that can be both scored and answered; prompts are cut to leave room for the answer."""
    found = []
    for record in records:
        example, turn = method.encode(record, tokens), question(record)
        if example is not None and turn is not None:
            prompt, reference = turn
            found.append(Question(example, prompt, tokens.prompt(prompt, max_new_tokens=max_new_tokens), reference))
    return found


def question(record: Record) -> tuple[Text, str] | None:
    """What may be asked of a record, with its answer: of a chat its last assistant turn; None for a prompt alone."""
    if isinstance(record, Supervised):
        return record.prompt, record.completion
    if isinstance(record, Rationale):
        return None if record.label is None else (record.prompt, record.label)
    if isinstance(record, Preference):
        return record.prompt, plain(record.chosen)
    if isinstance(record, Chat):
        last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
        return record.messages[:last], record.messages[last].content
    return None


def plain(text: Text) -> str:
    """Text or conversation as one string to read."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{message.role}: {message.content}" for message in text if isinstance(message, Message))
