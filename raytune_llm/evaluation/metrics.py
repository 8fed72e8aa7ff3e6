"""Metrics that can be computed again on any resample of the examples.

Each is a function of a sum over examples: `statistics` has a row per example, `value` turns the summed rows into the
metric. Means, ratios of sums, F1 and corpus BLEU all have this form, so that a thousand bootstrap draws are one matrix
product.

A task is a label task when its references are at most 20 distinct strings that repeat 3 times on average; then accuracy
and F1 are reported, else exact match, token F1 (Rajpurkar et al., 2016: overlap of words, as SQuAD counts it), ROUGE-L
(Lin, 2004; rouge_score, F-measure, no stemming: its tokenizer knows only a-z and 0-9) and BLEU (Papineni et al., 2002;
sacrebleu's corpus BLEU with its default 13a tokenizer and exponential smoothing, 0 to 100). Answers are compared as
strings without surrounding white space. Leaves out: numeric answers and judged quality.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytune_llm.evaluation.terms import Better

Array = NDArray[np.float64]

MOST_LABELS = 20
FEWEST_REPEATS = 3
BLEU_ORDER = 4
MAIN_ANSWER_METRICS = ("accuracy", "f1_macro", "exact_match", "token_f1", "rougeL", "bleu")
"""Those that say how good all answers are; others look at one label, or at no reference."""
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Metric:
    """A number that depends on the examples through a sum of statistics."""

    statistics: Array
    """(n, k), one row per example."""
    value: Callable[[Array], Array]
    """Summed statistics (…, k) to the metric (…)."""
    better: Better

    @property
    def num_examples(self) -> int:
        return len(self.statistics)

    def whole(self) -> float:
        """The metric on all examples."""
        return float(self.value(self.statistics.sum(0)))

    def at(self, index: NDArray[np.intp]) -> Array:
        """The metric on the examples of each row of index, shape (…, m) to (…); an example may be named repeatedly."""
        return self.value(self.statistics[index].sum(-2))

    def repeated(self, counts: Array) -> Array:
        """The same, with how often each example is drawn: (draws, n) to (draws,). NaN and inf reach every draw."""
        with np.errstate(invalid="ignore"):
            return self.value(counts @ self.statistics)


def ratio(sums: Array, weights: Array, better: Better) -> Metric:
    """Σ sum / Σ weight over examples, both (n,); NaN where nothing has weight."""
    return Metric(np.stack([sums, weights], -1), divide, better)


def mean(values: Sequence[float] | Array, better: Better) -> Metric:
    """The mean of one number per example, (n,)."""
    array = np.asarray(values, dtype=np.float64)
    return ratio(array, np.ones_like(array), better)


def wholes(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric on all examples."""
    return {name: metric.whole() for name, metric in metrics.items()}


def divide(totals: Array) -> Array:
    """totals (…, 2) to totals[…, 0] / totals[…, 1]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[..., 0] / totals[..., 1]


def sum_of_ratios(totals: Array) -> Array:
    """Σ sum / weight from totals (…, 2·terms); terms without weight add nothing, NaN without any."""
    pairs = totals.reshape(*totals.shape[:-1], -1, 2)
    counts = pairs[..., 1] != 0
    total = np.where(counts, divide(pairs), 0.0).sum(-1)
    return np.where(counts.any(-1), total, np.nan)


def perplexity(totals: Array) -> Array:
    """exp of a ratio, from totals (…, 2)."""
    with np.errstate(over="ignore"):
        return np.exp(divide(totals))


def answers(references: Sequence[str], predictions: Sequence[str], *, prefix: str = "eval") -> dict[str, Metric]:
    """Every metric that suits these references; see the module. Raises ValueError when the lengths differ or are 0."""
    return task_answers(references, predictions, label_set(references), prefix=prefix)


def task_answers(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None, *, prefix: str = "eval"
) -> dict[str, Metric]:
    """The metrics of a label task with these labels, or of a text task (None), on any part of its records. Raises
    ValueError as `answers`."""
    chosen = text_metrics(references, predictions) if labels is None else label_metrics(references, predictions, labels)
    return {f"{prefix}/{name}": metric for name, metric in chosen.items()}


def answer_directions(labels: Sequence[str] | None, *, prefix: str = "eval") -> dict[str, Better]:
    """The direction of each metric of `task_answers`, by full name."""
    return {name: metric.better for name, metric in task_answers(["a"], ["a"], labels, prefix=prefix).items()}


def after(text: str, mark: str | None) -> str:
    """The text after the last `mark`, or all of it where there is none: the answer of an output that reasons first."""
    return text if mark is None else text.rpartition(mark)[2].strip()


def label_set(references: Sequence[str]) -> list[str] | None:
    """The labels of a label task, the most frequent first; None for a text task."""
    counts = Counter(text.strip() for text in references)
    if len(counts) > MOST_LABELS or len(references) < FEWEST_REPEATS * len(counts):
        return None
    return sorted(counts, key=lambda label: (-counts[label], label))


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> Array:
    """1 where the answer is the reference, else 0; (n,)."""
    return np.array([r == p for r, p in zip(*_stripped(references, predictions), strict=True)], dtype=np.float64)


def label_metrics(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> dict[str, Metric]:
    """accuracy, f1_macro (the mean over the labels), f1/<label>, and valid_answers, the share that are labels at all; 0
    to 1."""
    references, predictions = _stripped(references, predictions)
    counts = [
        np.array(
            [(r == p == label, p == label, r == label) for r, p in zip(references, predictions, strict=True)], float
        )
        for label in labels
    ]
    return {
        "accuracy": mean(exact_match(references, predictions), Better.higher),
        "f1_macro": Metric(np.concatenate(counts, -1), _f1_macro, Better.higher),
        **{f"f1/{label}": Metric(rows, _f1, Better.higher) for label, rows in zip(labels, counts, strict=True)},
        "valid_answers": mean([float(p in labels) for p in predictions], Better.higher),
    }


def text_metrics(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Metric]:
    """exact_match, token_f1 and rougeL (0 to 1), bleu (0 to 100) and answer_words, the mean number of words in an
    answer."""
    references, predictions = _stripped(references, predictions)
    return {
        "exact_match": mean(exact_match(references, predictions), Better.higher),
        "token_f1": mean(token_f1(references, predictions), Better.higher),
        "rougeL": mean(rouge_l(references, predictions), Better.higher),
        "bleu": Metric(bleu_statistics(references, predictions), bleu, Better.higher),
        "answer_words": mean([len(p.split()) for p in predictions], Better.neither),
    }


def token_f1(references: Sequence[str], predictions: Sequence[str]) -> Array:
    """F1 of the words that answer and reference share, each as often as both have it, 0 to 1; (n,). Words are
    lower-cased, without ASCII punctuation and English articles, as in SQuAD's script; two texts without words agree."""
    return np.array([_word_f1(_words(r), _words(p)) for r, p in zip(references, predictions, strict=True)])


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _word_f1(reference: list[str], answer: list[str]) -> float:
    if not reference or not answer:
        return float(reference == answer)
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))


def rouge_l(references: Sequence[str], predictions: Sequence[str]) -> Array:
    """F-measure of the longest common subsequence of words, 0 to 1; (n,)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, predictions, strict=True)
    return np.array([scorer.score(r, p)["rougeL"].fmeasure for r, p in pairs], dtype=np.float64)


def bleu_statistics(references: Sequence[str], predictions: Sequence[str]) -> Array:
    """(n, 10): answer length, reference length, matching n-grams and all n-grams of orders 1 to 4, in 13a tokens."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(force=True)
    scores = [scorer.corpus_score([p], [[r]]) for r, p in zip(references, predictions, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.float64)


def bleu(totals: Array) -> Array:
    """Corpus BLEU, 0 to 100, from summed statistics (…, 10): sacrebleu's formula, over many resamples at once."""
    answer_length, reference_length = totals[..., 0], totals[..., 1]
    matches, all_grams = totals[..., 2 : 2 + BLEU_ORDER], totals[..., 2 + BLEU_ORDER :]
    log_precision = np.zeros(totals.shape[:-1])
    smoothing = np.ones(totals.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for order in range(BLEU_ORDER):
            missing = matches[..., order] == 0
            smoothing = np.where(missing, 2 * smoothing, smoothing)
            log_precision += np.log(np.where(missing, 1 / smoothing, matches[..., order]) / all_grams[..., order])
        brevity = np.minimum(0.0, 1 - reference_length / answer_length)
        score = 100 * np.exp(brevity + log_precision / BLEU_ORDER)
    return np.where((matches[..., 0] > 0) & (all_grams > 0).all(-1), score, 0.0)


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one label."""

    label: str
    precision: float
    """Of the answers with this label, the share that are right; 0 when there are none."""
    recall: float
    """Of the references with this label, the share that were answered so."""
    f1: float
    support: int
    """References with this label."""


@dataclass(frozen=True)
class Confusion:
    """References against answers of a label task."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """counts[i][j]: references labels[i] answered labels[j]; the last column counts answers outside the label set."""

    @classmethod
    def of(cls, references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> Confusion:
        """Raises ValueError when a reference is not among the labels."""
        references, predictions = _stripped(references, predictions)
        unknown = sorted(set(references) - set(labels))
        if unknown:
            raise ValueError(
                f"references {unknown[:5]} are not in labels={list(labels)}; take them from label_set(references)"
            )
        pairs = Counter((r, p if p in labels else None) for r, p in zip(references, predictions, strict=True))
        columns = [*labels, None]
        return cls(tuple(labels), tuple(tuple(pairs[row, column] for column in columns) for row in labels))

    @property
    def outside(self) -> int:
        """Answers that are none of the labels."""
        return sum(row[-1] for row in self.counts)

    def classes(self) -> list[ClassScore]:
        """Precision, recall, F1 and support of each label."""
        matrix = np.array(self.counts, dtype=np.float64)
        scores = []
        for i, label in enumerate(self.labels):
            hits, answered, support = matrix[i, i], matrix[:, i].sum(), matrix[i].sum()
            precision, recall = hits / max(answered, 1), hits / max(support, 1)
            scores.append(ClassScore(label, precision, recall, 2 * hits / max(answered + support, 1), int(support)))
        return scores


def _f1(totals: Array) -> Array:
    """2·hits / (answered + support) from totals (…, 3); 0 where the label is neither a reference nor an answer."""
    return 2 * totals[..., 0] / np.maximum(totals[..., 1] + totals[..., 2], 1)


def _f1_macro(totals: Array) -> Array:
    """Mean F1 over the labels that occur in the resample, from totals (…, 3·labels)."""
    by_label = totals.reshape(*totals.shape[:-1], -1, 3)
    occurs = by_label[..., 1] + by_label[..., 2] > 0
    return _f1(by_label).sum(-1) / np.maximum(occurs.sum(-1), 1)


def _stripped(references: Sequence[str], predictions: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(references) != len(predictions) or not references:
        raise ValueError(
            f"{len(references)} references and {len(predictions)} predictions; give as many, and at least one"
        )
    return [text.strip() for text in references], [text.strip() for text in predictions]


VALUES = {function.__name__: function for function in (divide, sum_of_ratios, perplexity, _f1, _f1_macro, bleu)}
"""By name, what trials' metrics are of their summed statistics."""
