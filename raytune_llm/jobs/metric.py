"""method.metric: whether these records have it, its direction, and what trials must answer for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raytune_llm.data.encoding.encode import EncodedSplit, EncodedSplits, draw_indices
from raytune_llm.data.examples import Example
from raytune_llm.data.findings import many
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.metrics import after, label_set
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.compare import Question, questions_of
from raytune_llm.jobs.schema import DataJob
from raytune_llm.methods.base import blank_eval_scores, metric_directions
from raytune_llm.stores.choices import nearest_first

Directions = Mapping[str, Better]


def choose_metric(job: DataJob, encoded: EncodedSplits, tokens: Tokens) -> tuple[Better | None, Answering | None]:
    """The direction of method.metric and, where it is a metric of answers, what trials answer; None twice without eval
    records. Raises InputError for a metric that no evaluation on them will report, or that has no direction."""
    metric, examples = job.method.metric, encoded.eval.examples
    if not examples:
        return None, None
    terms = directions_of(job, examples[0])
    if metric in directed(terms):
        check_weighed(job, examples, terms)
        return terms[metric], None
    questions = compared_questions(job, encoded.eval, tokens)
    directions = directions_of(job, examples[0], right_answers(job, questions))
    check_known(metric, directions, "these records")
    if encoded.test.examples:
        of_test = right_answers(job, compared_questions(job, encoded.test, tokens))
        check_known(metric, directions_of(job, encoded.test.examples[0], of_test), "the records of data.test")
    return directions[metric], answering_of(job, questions, tokens)


def directions_of(job: DataJob, example: Example, references: Sequence[str] = ()) -> Directions:
    """As metric_directions, for the job's method and base."""
    is_encoder_decoder = job.model.facts.is_encoder_decoder
    return metric_directions(job.method, example, is_encoder_decoder=is_encoder_decoder, references=references)


def directed(directions: Directions) -> list[str]:
    """The metrics by which trials can be chosen."""
    return [name for name, better in directions.items() if better is not Better.neither]


def check_known(metric: str, directions: Directions, records: str) -> None:
    """Refuse a metric that isn't among those by which trials can be chosen."""
    if metric not in directed(directions):
        names = ", ".join(nearest_first(metric, tuple(directed(directions))))
        raise InputError(
            f"method.metric={metric} is not allowed; with this method {records} have, nearest first: {names}"
        )


def check_weighed(job: DataJob, examples: Sequence[Example], terms: Directions) -> None:
    """Refuse a loss term that has no weight on any eval example."""
    method, is_encoder_decoder = job.method, job.model.facts.is_encoder_decoder
    reported = method.needs.sampling or any(
        method.metric in blank_eval_scores(method, example, is_encoder_decoder=is_encoder_decoder).resamplable()
        for example in examples
    )
    if not reported:
        raise InputError(f"method.metric={method.metric}: no eval example has it; choose another of {directed(terms)}")


def compared_questions(job: DataJob, split: EncodedSplit, tokens: Tokens) -> list[Question]:
    """The questions that the comparison after training asks of a split; none for a method that isn't judged by
    answers."""
    if not job.method.needs.answers:
        return []
    evaluation = job.evaluation
    drawn = split.drawn(evaluation.max_examples, job.seed)
    return questions_of(drawn, job.method, tokens, evaluation.longest_answer(tokens.max_tokens))


def right_answers(job: DataJob, questions: Sequence[Question]) -> list[str]:
    """Their reference answers."""
    return [after(question.reference, job.evaluation.answer_after) for question in questions]


def answering_of(job: DataJob, questions: Sequence[Question], tokens: Tokens) -> Answering:
    """What trials answer: evaluation.answers_per_eval of the questions, drawn with the job's seed. Raises InputError
    when the metric is about a label that none of them has."""
    evaluation, labels = job.evaluation, label_set(right_answers(job, questions))
    drawn = [questions[i] for i in draw_indices(len(questions), evaluation.answers_per_eval, job.seed)]
    references = right_answers(job, drawn)
    label = job.method.metric.removeprefix("eval/f1/")
    if label in (labels or ()) and label != job.method.metric and label not in references:
        raise InputError(
            f"method.metric={job.method.metric}: none of the {many(len(drawn), 'record')} that each evaluation "
            f"answers has this label; raise evaluation.answers_per_eval, up to {len(questions)}"
        )
    return Answering(
        prompts=tuple(question.prompt_ids for question in drawn),
        references=tuple(references),
        labels=None if labels is None else tuple(labels),
        max_new_tokens=evaluation.longest_answer(tokens.max_tokens),
        stop_ids=tuple(tokens.stop_ids()),
        answer_after=evaluation.answer_after,
    )
