"""The answers of an old model as the bar for a new version: both answered the same prompts, which is better, by more
than chance (evaluation/compare.py)?

With right answers, old and new are scored against them. Without, what can be measured is agreement with the old
answers, of the new version and of its base: that says how near it came, not whether it is as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm import cluster
from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.findings import many
from raytune_llm.data.question import plain
from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.problems import BadLine
from raytune_llm.data.reading.streams import FAILURES, why_unreadable
from raytune_llm.data.records import Prompt, RecordError, Text
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.evaluation import report
from raytune_llm.evaluation.compare import Comparison, VerdictKind, better, compare, number
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.metrics import after, answers
from raytune_llm.evaluation.report import Sample
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.reports import write_report
from raytune_llm.jobs.schema import ImportOpenAIJob
from raytune_llm.models.base import Base
from raytune_llm.models.loading import load_model
from raytune_llm.stores.registry import Registry

PROMPTS = (
    ("messages",),
    ("prompt",),
    ("input", "messages"),
    ("input",),
    ("request", "messages"),
    ("request", "body", "messages"),
    ("item", "messages"),
    ("item", "input"),
    ("item", "prompt"),
    ("item", "question"),
)
ANSWERS = (
    ("answer",),
    ("completion",),
    ("output",),
    ("output_text",),
    ("sample", "output_text"),
    ("sample",),
    ("response", "body"),
    ("response",),
)
NAMES = ("reference", "ideal", "expected", "reference_answer", "ground_truth")
REFERENCES = (*((name,) for name in NAMES), *(("item", name) for name in NAMES))
"""Where a record may have each part, by path of keys; the first that is there counts."""
FEWEST_PROMPTS = 30
"""On fewer, being no worse says little."""
METRICS = ("eval/accuracy", "eval/token_f1")
"""Which decides: that of labels, else of texts."""


@dataclass(frozen=True)
class OldAnswer:
    """A prompt and what the old model answered."""

    prompt: Text
    answer: str
    reference: str | None


def compare_with_old(job: ImportOpenAIJob, old: Sequence[OldAnswer], reference: str) -> str:
    """Have a version and its base answer the prompts, and compare; writes evaluation-answers.md and .json into the
    run's folder. The terminal's text. Raises InputError."""
    version = Registry(job.registry_dir).resolve(reference)
    base = Base.from_loading(version.card.base_loading)
    if version.card.base_revision != job.model.facts.revision_hash:
        raise InputError(f"{version.reference} was tuned from {version.card.base}, not from {job.model.name_or_path}")
    cluster.connect()
    use_gpu = cluster.uses_gpu(None)
    max_tokens = job.model.facts.max_tokens(job.data.max_tokens)
    print(f"answering {many(len(old), 'prompt')} with {version.reference} and its base …", flush=True)
    given = cluster.as_task(answers_of, use_gpu=use_gpu)(
        base,
        {"base": None, "new": version.path},
        [one.prompt for one in old],
        job.evaluation,
        max_tokens=max_tokens,
        use_gpu=use_gpu,
    )
    result, metric = compared(old, given, job.evaluation, seed=job.seed)
    title = f"{version.reference} against the old model's answers"
    path = write_report(job.run_dir, "answers", result, version, title=title, metric=metric)
    verdict = verdict_of(result.comparison, metric, job.tolerance)
    return f"{report.table(result.comparison)}\n\n{verdict}\nreport  {path}"


def answers_of(
    base: Base,
    systems: Mapping[str, str | None],
    prompts: Sequence[Text],
    evaluation: Evaluation,
    *,
    max_tokens: int,
    use_gpu: bool,
) -> dict[str, list[str]]:
    """Each system's greedy answers to the prompts, as clients of an endpoint send them."""
    is_encoder_decoder = base.facts.is_encoder_decoder
    tokens = Tokens(base.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=is_encoder_decoder)
    most = evaluation.longest_answer(max_tokens)
    ids = [tokens.prompt(prompt, max_new_tokens=most) for prompt in prompts]
    return {
        name: generate(
            load_model(base, location, use_gpu=use_gpu),
            tokens.tokenizer,
            ids,
            max_new_tokens=most,
            stop_ids=tokens.stop_ids(),
            batch_size=evaluation.batch_size,
        )
        for name, location in systems.items()
    }


def compared(
    old: Sequence[OldAnswer], given: Mapping[str, Sequence[str]], evaluation: Evaluation, *, seed: int
) -> tuple[ComparisonResult, str]:
    """The base, the old answers (where the right ones are known) and the new ones, with the metric that decides. Raises
    InputError where only some right answers are known."""
    known = [one.reference for one in old if one.reference is not None]
    if known and len(known) < len(old):
        raise InputError(f"{len(known)} of {many(len(old), 'answer')} have a right one (reference): give all, or none")
    right = known or [one.answer for one in old]
    middle = {"old": [one.answer for one in old]} if known else {}
    systems = {"base": given["base"], **middle, "new": given["new"]}
    references = [after(text, evaluation.answer_after) for text in right]
    scored = {
        name: answers(references, [after(text, evaluation.answer_after) for text in texts])
        for name, texts in systems.items()
    }
    comparison = compare(scored, num_draws=evaluation.bootstrap_draws, seed=seed)
    samples = [
        Sample(plain(one.prompt), right[place], {name: texts[place] for name, texts in systems.items()})
        for place, one in enumerate(old[: evaluation.num_samples])
    ]
    return ComparisonResult(comparison, samples), next(name for name in METRICS if name in comparison.metrics)


def verdict_of(comparison: Comparison, metric: str, tolerance: float) -> str:
    """Whether the new version reaches the bar, in a sentence or two."""
    if "old" not in comparison.systems:
        near = comparison.metrics[metric]["new"]
        agreement = f"{metric} {number(near.value)} [{number(near.low)}, {number(near.high)}]"
        return (
            f"agreement with the old answers: {agreement}; {better(comparison, metric).text}\n"
            "without right answers (a key `reference` in each record) this doesn't say whether it reaches the bar"
        )
    found, text = comparison.difference(metric, "new", "old"), better(comparison, metric, "new", "old")
    assert found.better is Better.higher
    if found.low >= -tolerance and comparison.num_examples >= FEWEST_PROMPTS:
        return f"reaches the bar: {text.text}"
    if text.outcome is VerdictKind.worse and found.value < -tolerance:
        return f"below the bar: {text.text}"
    return f"can't tell whether it reaches the bar: {text.text}; more prompts, or tolerance=…, would decide"


def read_answers(location: str) -> list[OldAnswer]:
    """All records of a location. Raises InputError naming file and line."""
    reader, found = Reader((Prompt,)), []
    try:
        for line, raw in read(location):
            try:
                if isinstance(raw, BadLine):
                    raise RecordError("record", str(raw), "a JSON object")
                found.append(old_answer(raw, reader))
            except RecordError as error:
                raise InputError(f"{location}:{line}: {error}") from error
    except FAILURES as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"answers={location}: {why_unreadable(location, error)}") from error
    if not found:
        raise InputError(f"answers={location} has no records")
    return found


def old_answer(raw: object, reader: Reader) -> OldAnswer:
    """One record. Raises RecordError."""
    prompt, answer = first_of(raw, PROMPTS), text_of(first_of(raw, ANSWERS))
    if isinstance(prompt, list) and prompt and _role(prompt[-1]) == "assistant":
        prompt, answer = prompt[:-1], answer or text_of(prompt[-1])
    if answer is None:
        raise RecordError("answer", "none", "the old model's answer, as answer, completion, output, or the last turn")
    if prompt is None:
        raise RecordError("prompt", "none", "what the old model was asked, as messages, prompt or input")
    record, _ = reader.read({"messages" if isinstance(prompt, list) else "prompt": prompt})
    assert isinstance(record, Prompt)
    return OldAnswer(record.prompt, answer, text_of(first_of(raw, REFERENCES)))


def first_of(raw: object, paths: Sequence[Sequence[str]]) -> Any:
    """The first of these paths of keys that leads somewhere; None where none does."""
    for path in paths:
        value: Any = raw
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def text_of(value: Any) -> str | None:
    """The text of an answer: itself, a turn, parts, or the body of a response of OpenAI's; None for none."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, list):
        texts = [text for text in map(text_of, value) if text is not None]
        return "".join(texts) if texts else None
    if isinstance(value, dict):
        if isinstance(value.get("choices"), list) and value["choices"]:
            return text_of(value["choices"][0])
        return text_of(first_of(value, (("message",), ("content",), ("text",), ("output_text",), ("output",))))
    return str(value)


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, dict) else None
