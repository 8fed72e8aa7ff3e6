"""Systems compared on the same records: is the tuned model better than its base, by more than chance?

Which measure decides depends on the method: given answers and those generated (most methods), how given answers are
ranked (reward models), or the rewards of sampled completions (policies). Runs wherever it is called: on the driver for
a small base, in a Ray task with a GPU for a large one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytune_llm import cluster
from raytune_llm.data.encoding.encode import EncodedSplit
from raytune_llm.data.examples import Example
from raytune_llm.data.findings import many
from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference, Text
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.evaluation.calibration import calibration_error, reliability
from raytune_llm.evaluation.compare import Comparison, compare
from raytune_llm.evaluation.loss import Scores, evaluate
from raytune_llm.evaluation.metrics import Array, Confusion, Metric, after, label_set
from raytune_llm.evaluation.metrics import answers as answer_metrics
from raytune_llm.evaluation.report import Sample
from raytune_llm.evaluation.systems import Systems, Task, measure_systems, score_systems
from raytune_llm.evaluation.throughput import side_by_side
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.methods import model_refs
from raytune_llm.methods.base import Method, Session
from raytune_llm.models.loading import load_model


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison with the samples and tables of its report."""

    comparison: Comparison
    samples: list[Sample]
    confusions: dict[str, Confusion] | None = None
    tables: dict[str, list[list[str]]] | None = None
    """Further tables of a report by their titles."""
    measured: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict, repr=False)
    """What was compared, of each example: by system, then by metric."""
    answers: Sequence[Sample] = field(default=(), repr=False)
    """Every prompt with its reference and each system's answer, in the order of `measured`; none where the method's
    models give no answers."""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What further tables are made of, as plain values for the report's JSON."""
    num_unanswered: int = 0
    """Records that were left out, as they have no answer to compare with, while others have one."""


@dataclass(frozen=True)
class Question:
    """A record to be answered: its example, its prompt as fed to generation, its reference answer."""

    example: Example
    prompt: Text
    prompt_ids: list[int]
    reference: str


def compare_on_cluster(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    split_name: str,
    tokens: Tokens,
    seed: int,
    allow_modules: Sequence[str],
) -> ComparisonResult:
    """`compare_systems` in a Ray task, where the accelerators are; only the records that it compares travel there.
    Prints what it took."""
    split = split.drawn(evaluation.max_examples, seed)
    *others, newest = systems
    names = f"{', '.join(others)} and {newest}" if others else newest
    print(f"comparing {names} on {many(len(split.records), f'{split_name} record')} …", end="", flush=True)
    started = time.monotonic()
    try:
        found = cluster.as_task(compare_systems, use_gpu=models.use_gpu)(
            models,
            dict(systems),
            split,
            evaluation,
            tokens=tokens,
            seed=seed,
            allow_modules=list(allow_modules),
        )
    finally:
        print(f" {time.monotonic() - started:.0f} s", flush=True)
    if found.num_unanswered:
        print(
            f"{many(found.num_unanswered, 'record')} without an answer to compare with (plain texts, calls of tools) "
            f"{'is' if found.num_unanswered == 1 else 'are'} left out of the comparison, its loss too",
            flush=True,
        )
    return found


def compare_systems(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
    allow_modules: Sequence[str],
) -> ComparisonResult:
    """Compare systems, the newest last, on a split's records, at most evaluation.max_examples of them, whose examples
    have all that the method needs of frozen models (jobs/precompute.py).

    Raises InputError when no record can be compared on.
    """
    method = models.method
    split = split.drawn(evaluation.max_examples, seed)
    if method.needs.score:
        return compare_rankings(models, systems, split, evaluation, tokens=tokens, seed=seed)
    with model_refs.open_session(
        method,
        models.base,
        registry_dir=models.registry_dir,
        allow_modules=allow_modules,
        batch_size=evaluation.batch_size,
        seed=seed,
        use_gpu=models.use_gpu,
    ) as session:
        if session is not None:
            return compare_policies(session, models, systems, split, evaluation, seed=seed)
    return compare_answers(models, systems, split, evaluation, tokens=tokens, seed=seed)


def compare_answers(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
) -> ComparisonResult:
    """Compare by the method's terms on the given answers, and by the answers that are generated; by the terms alone
    where no record has an answer to compare with: plain texts, answers that are calls of tools."""
    max_new_tokens = evaluation.longest_answer(tokens.max_tokens)
    questions = questions_of(split, models.method, tokens, max_new_tokens)
    if not questions:
        return compare_losses(models, systems, split, evaluation, tokens=tokens, seed=seed)
    references = [after(question.reference, evaluation.answer_after) for question in questions]
    task = Task(
        examples=[question.example for question in questions],
        terms=models.method.terms,
        prompts=[question.prompt_ids for question in questions],
        tokenizer=tokens.tokenizer,
        stop_ids=tokens.stop_ids(),
        max_new_tokens=max_new_tokens,
        batch_size=evaluation.batch_size,
    )
    measured = measure_systems(models.base, systems, task, use_gpu=models.use_gpu)
    completions = {name: found.completions for name, found in measured.items()}
    answered = {name: [after(text, evaluation.answer_after) for text in texts] for name, texts in completions.items()}
    metrics = {
        name: {**found.scores.resamplable(), **answer_metrics(references, answered[name])}
        for name, found in measured.items()
    }
    tables = None
    if models.method.needs.precomputes_teacher:
        student = load_model(models.base, list(systems.values())[-1], use_gpu=models.use_gpu)
        tables = {"Student and teacher": _speeds(models, student, task, references)}
    labels = label_set(references)
    return ComparisonResult(
        compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed),
        [_sample(question, place, completions) for place, question in enumerate(questions[: evaluation.num_samples])],
        {name: Confusion.of(references, texts, labels) for name, texts in answered.items()} if labels else None,
        tables,
        measured=metrics,
        answers=_answers(questions, references, answered),
        num_unanswered=len(split.examples) - len(questions),
    )


def compare_losses(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
) -> ComparisonResult:
    """Compare by the method's terms on what the records say, without any samples."""
    examples = [example for _, example in split.pairs()]
    if not examples:
        raise InputError(f"truncation leaves nothing of {many(len(split.records), 'record')} to compare on")
    scores = score_systems(
        models.base,
        systems,
        examples,
        models.method.terms,
        pad_id=tokens.tokenizer.pad_token_id,
        batch_size=evaluation.batch_size,
        use_gpu=models.use_gpu,
    )
    found = {name: of_system.resamplable() for name, of_system in scores.items()}
    return ComparisonResult(compare(found, num_draws=evaluation.bootstrap_draws, seed=seed), [], measured=found)


def _scores(
    models: FrozenModels, location: str | None, examples: Sequence[Example], evaluation: Evaluation, tokens: Tokens
) -> Scores:
    """The method's terms of one system over examples."""
    return evaluate(
        load_model(models.base, location, score=models.method.needs.score, use_gpu=models.use_gpu),
        examples,
        models.method.terms,
        pad_id=tokens.tokenizer.pad_token_id,
        batch_size=evaluation.batch_size,
    )


def _speeds(models: FrozenModels, student: Any, task: Task, references: Sequence[str]) -> list[list[str]]:
    return side_by_side(
        {"teacher": models.teacher, "student": student},
        task.tokenizer,
        task.prompts,
        references,
        max_new_tokens=task.max_new_tokens,
        stop_ids=task.stop_ids,
    )


def _answers(
    questions: Sequence[Question], references: Sequence[str], answered: Mapping[str, Sequence[str]]
) -> list[Sample]:
    """Every question with its reference and each system's answer."""
    return [
        Sample(plain(question.prompt), references[place], {name: texts[place] for name, texts in answered.items()})
        for place, question in enumerate(questions)
    ]


def _sample(question: Question, place: int, completions: Mapping[str, Sequence[str]]) -> Sample:
    """A question with each system's completion."""
    texts = {name: of_all[place] for name, of_all in completions.items()}
    return Sample(plain(question.prompt), question.reference, texts)


def compare_rankings(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    tokens: Tokens,
    seed: int,
) -> ComparisonResult:
    """Compare reward models on preferences: loss, pairwise accuracy and margin by the method's terms, and calibration.
    The base itself has an untrained head, which is chance."""
    pairs = [(record, example) for record, example in split.pairs() if isinstance(record, Preference)]
    if not pairs:
        raise InputError(f"none of the {many(len(split.records), 'record')} is a pair of answers to rank")
    metrics: dict[str, dict[str, Metric]] = {}
    margins: dict[str, Array] = {}
    for name, location in systems.items():
        scores = _scores(models, location, [example for _, example in pairs], evaluation, tokens)
        margins[name] = scores.terms["margin"].sum
        metrics[name] = {**scores.resamplable(), "eval/calibration_error": calibration_error(margins[name])}
    samples = [
        Sample(
            f"{plain(record.prompt)}\n\nchosen: {plain(record.chosen)}\nrejected: {plain(record.rejected)}",
            "a margin above 0",
            {name: f"{values[i]:+.2f}" for name, values in margins.items()},
        )
        for i, (record, _) in enumerate(pairs[: evaluation.num_samples])
    ]
    newest = list(systems)[-1]
    return ComparisonResult(
        compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed),
        samples,
        tables={f"Calibration of {newest}": reliability(margins[newest])},
        measured=metrics,
    )


def compare_policies(
    session: Session, models: FrozenModels, systems: Systems, split: EncodedSplit, evaluation: Evaluation, *, seed: int
) -> ComparisonResult:
    """Compare policies by the completions that they sample for the records' prompts, each against the reference that
    training began with."""
    reference = session.reference_model()
    found = {
        name: session.measure(load_model(models.base, location, use_gpu=models.use_gpu), split.examples, reference)
        for name, location in systems.items()
    }
    first = next(iter(found.values()))
    answers = [
        Sample(prompt, answer, {name: measured.texts[i][2] for name, measured in found.items()})
        for i, (prompt, answer, _) in enumerate(first.texts)
    ]
    metrics = {name: measured.metrics for name, measured in found.items()}
    compared = compare(metrics, num_draws=evaluation.bootstrap_draws, seed=seed)
    return ComparisonResult(compared, answers[: evaluation.num_samples], measured=metrics, answers=answers)


def questions_of(split: EncodedSplit, method: Method, tokens: Tokens, max_new_tokens: int) -> list[Question]:
    """The records that can be both scored and answered; prompts are cut to leave room for the answer."""
    found = []
    for record, example in split.pairs():
        question = method.question(record)
        if question is not None:
            prompt, reference = question
            found.append(Question(example, prompt, tokens.prompt(prompt, max_new_tokens=max_new_tokens), reference))
    return found
