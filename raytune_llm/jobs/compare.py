"""Does the tuned model do better than its base, by more than chance? Both answer the same records; the bootstrap
decides.

Runs wherever it is called: on the driver for a small base, in a Ray task with a GPU for a large one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raytune_llm.data.examples import Example
from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference, Record, Text
from raytune_llm.data.tokens import Tokens
from raytune_llm.evaluation.calibration import calibration_error, reliability
from raytune_llm.evaluation.compare import Comparison, compare
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.metrics import Array, Confusion, Metric, after, answers, label_set
from raytune_llm.evaluation.report import Sample
from raytune_llm.evaluation.throughput import side_by_side
from raytune_llm.jobs.schema import Evaluation
from raytune_llm.methods import model_refs
from raytune_llm.methods.base import Method, Session
from raytune_llm.methods.model_refs import load_reference
from raytune_llm.models.base import Base
from raytune_llm.models.frozen import with_references, with_teacher_top_k
from raytune_llm.models.loading import load_system


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison with what a reader wants to see of it."""

    comparison: Comparison
    samples: list[Sample]
    confusions: dict[str, Confusion] | None = None
    tables: dict[str, list[list[str]]] | None = None
    """Further tables of a report by their titles."""


@dataclass(frozen=True)
class Question:
    """A record to be answered: its loss example, its prompt as fed to generation, its reference answer."""

    example: Example
    prompt: Text
    prompt_ids: list[int]
    reference: str


def compare_systems(
    base: Base,
    method: Method,
    systems: Mapping[str, str | None],
    records: Sequence[Record],
    evaluation: Evaluation,
    *,
    max_tokens: int,
    seed: int,
    use_gpu: bool,
    registry_dir: str,
    allow_modules: Sequence[str],
) -> ComparisonResult:
    """Compare systems (name → folder or URI of a tuned model, None for the base itself) on records: by what they
    answer, reward models by how they rank given answers, policies by the rewards of what they sample.

    Raises ValueError when no record can be asked.
    """
    chosen = drawn(records, evaluation.max_examples, seed)
    tokens = Tokens(base.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=base.facts.is_encoder_decoder)
    if method.needs.score:
        return rank(base, method, systems, chosen, evaluation, tokens=tokens, seed=seed, use_gpu=use_gpu)
    with model_refs.open_session(
        method,
        base,
        registry_dir=registry_dir,
        allow_modules=allow_modules,
        batch_size=evaluation.batch_size,
        seed=seed,
        use_gpu=use_gpu,
    ) as session:
        if session is not None:
            return measure(session, base, method, systems, chosen, evaluation, tokens=tokens, seed=seed)
    max_new_tokens = min(evaluation.max_new_tokens, max_tokens // 2)
    asked = questions(chosen, method, tokens, max_new_tokens)
    if not asked:
        raise ValueError(f"none of the {len(records)} records has an answer to compare with")
    examples = [question.example for question in asked]
    if method.needs.reference:
        reference = load_reference(base, method, registry_dir, use_gpu=use_gpu)
        examples = with_references(
            reference, examples, pad_id=tokens.tokenizer.pad_token_id, batch_size=evaluation.batch_size
        )
    mentor = None
    if method.needs.precomputes_teacher:
        mentor = load_system(*model_refs.resolve_teacher(method.needs.teacher, base, registry_dir), use_gpu=use_gpu)
    if method.needs.teacher_top_k:
        examples = with_teacher_top_k(
            mentor,
            examples,
            num_candidates=method.needs.teacher_top_k,
            vocabulary=len(tokens.tokenizer),
            pad_id=tokens.tokenizer.pad_token_id,
            batch_size=evaluation.batch_size,
        )
    references = [after(question.reference, evaluation.answer_after) for question in asked]
    metrics: dict[str, dict[str, Metric]] = {}
    said: dict[str, list[str]] = {}
    answered: dict[str, list[str]] = {}
    for name, folder in systems.items():
        model = load_system(base, folder, use_gpu=use_gpu)
        scores = evaluate(
            model,
            examples,
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
        answered[name] = [after(text, evaluation.answer_after) for text in said[name]]
        metrics[name] = {**scores.resamplable(), **answers(references, answered[name])}
    labels = label_set(references)
    tables = mentor and {
        "Student and teacher": side_by_side(
            {"teacher": mentor, "student": model},
            tokens.tokenizer,
            [question.prompt_ids for question in asked],
            references,
            max_new_tokens=max_new_tokens,
            stop_ids=tokens.stop_ids(),
        )
    }
    return ComparisonResult(
        compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed),
        [
            Sample(plain(question.prompt), question.reference, {name: texts[i] for name, texts in said.items()})
            for i, question in enumerate(asked[: evaluation.num_samples])
        ],
        {name: Confusion.of(references, texts, labels) for name, texts in answered.items()} if labels else None,
        tables,
    )


def rank(
    base: Base,
    method: Method,
    systems: Mapping[str, str | None],
    records: Sequence[Record],
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
    use_gpu: bool,
) -> ComparisonResult:
    """Compare reward models on preferences: loss, pairwise accuracy and margin by the method's terms, and calibration.
    The base itself has an untrained head, which is chance.

    Raises ValueError when no pair is left after cutting.
    """
    pairs = [(record, method.encode(record, tokens)) for record in records if isinstance(record, Preference)]
    kept = [(record, example) for record, example in pairs if example is not None]
    if not kept:
        raise ValueError(f"none of the {len(records)} records is a pair of answers to rank")
    metrics: dict[str, dict[str, Metric]] = {}
    margins: dict[str, Array] = {}
    for name, folder in systems.items():
        scores = evaluate(
            load_system(base, folder, score=True, use_gpu=use_gpu),
            [example for _, example in kept],
            method.terms,
            pad_id=tokens.tokenizer.pad_token_id,
            batch_size=evaluation.batch_size,
        )
        margins[name] = scores.terms["margin"].sum
        metrics[name] = {**scores.resamplable(), "eval/calibration_error": calibration_error(margins[name])}
    samples = [
        Sample(
            f"{plain(record.prompt)}\n\nchosen: {plain(record.chosen)}\nrejected: {plain(record.rejected)}",
            "a margin above 0",
            {name: f"{values[i]:+.2f}" for name, values in margins.items()},
        )
        for i, (record, _) in enumerate(kept[: evaluation.num_samples])
    ]
    newest = list(systems)[-1]
    return ComparisonResult(
        compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed),
        samples,
        tables={f"Calibration of {newest}": reliability(margins[newest])},
    )


def measure(
    session: Session,
    base: Base,
    method: Method,
    systems: Mapping[str, str | None],
    records: Sequence[Record],
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
) -> ComparisonResult:
    """Compare policies by what they sample for the records' prompts, each beside the reference that training began
    with."""
    examples = [example for record in records if (example := method.encode(record, tokens)) is not None]
    reference, use_gpu = session.reference_model(), session.refs.device != "cpu"
    found = {
        name: session.measure(load_system(base, folder, use_gpu=use_gpu), examples, reference)
        for name, folder in systems.items()
    }
    first = next(iter(found.values()))
    samples = [
        Sample(prompt, answer, {name: measured.texts[i][2] for name, measured in found.items()})
        for i, (prompt, answer, _) in enumerate(first.texts[: evaluation.num_samples])
    ]
    metrics = {name: measured.metrics for name, measured in found.items()}
    return ComparisonResult(compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed), samples)


def drawn(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """At most `count` records, the same ones for the same seed."""
    if count is None or count >= len(records):
        return list(records)
    return random.Random(seed).sample(list(records), count)


def questions(records: Sequence[Record], method: Method, tokens: Tokens, max_new_tokens: int) -> list[Question]:
    """The records that can be both scored and answered; prompts are cut to leave room for the answer."""
    found = []
    for record in records:
        example, turn = method.encode(record, tokens), method.question(record)
        if example is not None and turn is not None:
            prompt, reference = turn
            found.append(Question(example, prompt, tokens.prompt(prompt, max_new_tokens=max_new_tokens), reference))
    return found
