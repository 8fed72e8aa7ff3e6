"""The loss of a model on a set of examples, by a method's own terms, kept per example so that it can be resampled.

    eval/loss = Σ_terms coefficient · Σ sum / Σ weight

over all examples at once: batching, padding and the number of processes change nothing but rounding. What isn't a
number is reported as such. Leaves out: answers (generate.py) and intervals (compare.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed

from raytune_llm.data.examples import Example
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.evaluation.metrics import Array, Metric, perplexity, ratio, sum_of_ratios, wholes
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.models.batches import batches, run_batches
from raytune_llm.models.forward import blank_outputs, inference, outputs
from raytune_llm.models.outputs import Outputs

Terms = Callable[[dict[str, Outputs]], dict[str, Term]]
_TOKENS = "label tokens"


@dataclass(frozen=True)
class Score:
    """One term on every example, in their order."""

    sum: Array
    """(n,)"""
    weight: Array
    """(n,)"""
    coefficient: float
    better: Better


class ScoreTable:
    """The terms of examples, filled in any order; what is scored again replaces what was."""

    def __init__(self, examples: Sequence[Example], terms: Terms) -> None:
        """Raises ValueError when there are no examples or their sequences have different names."""
        _check(examples)
        self._size, self._terms = len(examples), terms
        self._num_bytes = _num_bytes(examples)
        self.rows: dict[str, Array] = {}
        """Each term's sum and weight, (n, 2)."""
        self._kinds: dict[str, Term] = {}
        """Any term of that name."""

    def add(self, places: Sequence[int], found: dict[str, Outputs]) -> None:
        """The outputs of the examples at these places. Raises ValueError when a term isn't of shape (B,)."""
        num_tokens = torch.stack([output.mask.sum(-1) for output in found.values()]).sum(0)
        for name, term in {**self._terms(found), _TOKENS: Term(num_tokens, num_tokens)}.items():
            self._kinds[name] = term
            self.rows.setdefault(name, np.zeros((self._size, 2)))[places] = _columns(name, term, len(places))

    def scores(self, part: slice = slice(None)) -> Scores:
        """Of the examples, or a part of them."""
        found = {
            name: Score(both[part, 0], both[part, 1], self._kinds[name].coefficient, self._kinds[name].better)
            for name, both in self.rows.items()
            if name != _TOKENS
        }
        num_bytes = None if self._num_bytes is None else self._num_bytes[part]
        return Scores(found, self.rows[_TOKENS][part, 0], num_bytes)


@dataclass(frozen=True)
class Scores:
    """A method's terms on a set of examples."""

    terms: dict[str, Score]
    num_label_tokens: Array
    """Labels that count, of all the example's sequences together; (n,)."""
    num_bytes: Array | None = None
    """Of the text of those labels, in UTF-8, (n,); None where it isn't known."""

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """The value of each metric of `resamplable`."""
        return wholes(self.resamplable(prefix))

    def resamplable(self, prefix: str = "eval") -> dict[str, Metric]:
        """loss; each term, when there are several of them in the loss or it isn't in it; when the loss is one term that
        is a loss by name, averaged over label tokens, also perplexity = exp(loss) and, where bytes are known,
        bits_per_byte = Σ sum / ln 2 / Σ bytes. Raises ValueError when a term among several has one of these names."""
        counted = {name: term for name, term in self.terms.items() if term.weight.any()} or self.terms
        return {f"{prefix}/{name}": metric for name, metric in self._metrics(counted).items()}

    def token_means(self, prefix: str = "eval") -> set[str]:
        """The metrics that are means over tokens, as examples of several labels show: of other tokens they are other
        numbers."""
        found = {name for name, term in self.terms.items() if (term.weight > 1).any()}
        whole = {"loss", "perplexity"} if any(self.terms[name].coefficient for name in found) else set()
        return {f"{prefix}/{name}" for name in found | whole}

    def directions(self, prefix: str = "eval") -> dict[str, Better]:
        """The direction of each metric, those without weight on these examples included. Raises as `resamplable`."""
        return {f"{prefix}/{name}": metric.better for name, metric in self._metrics(self.terms).items()}

    def _metrics(self, counted: dict[str, Score]) -> dict[str, Metric]:
        """The metrics by their bare names; `counted` are the terms with metrics of their own."""
        losses = {name: term for name, term in self.terms.items() if term.coefficient != 0}
        found = {name: ratio(term.sum, term.weight, term.better) for name, term in counted.items()}
        if len(losses) == 1:
            found.pop(next(iter(losses)), None)
        clash = sorted({"loss", "perplexity", "bits_per_byte"} & set(found))
        if clash:
            raise ValueError(
                f"the method's terms {sorted(self.terms)} include {clash}, which name its whole loss; rename those"
            )
        if losses:
            columns = [column for term in losses.values() for column in (term.coefficient * term.sum, term.weight)]
            total = Metric(np.stack(columns, -1), sum_of_ratios, Better.lower)
            found = {"loss": total, **found}
            name, only = next(iter(losses.items()))
            whole = len(losses) == 1 and only.coefficient == 1 and name.endswith("loss")
            if whole and np.array_equal(only.weight, self.num_label_tokens):
                found["perplexity"] = Metric(total.statistics, perplexity, Better.lower)
                if self.num_bytes is not None:
                    found["bits_per_byte"] = ratio(only.sum / math.log(2), self.num_bytes, Better.lower)
        return found


def evaluate(
    model: Any,
    examples: Sequence[Example],
    terms: Terms,
    *,
    pad_id: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Scores:
    """Score the examples in eval mode without gradients; the model's modes are restored.

    With world_size > 1 each process of the default torch.distributed group takes every world_size-th example and all
    return the same Scores. Each runs equally many batches (a surplus example is scored and dropped), as sharded models
    need; so only a single process halves batches that run out of memory.

    Raises:
        ValueError: there are no examples, their sequences have different names, or a term isn't of shape (B,).
    """
    table = ScoreTable(examples, terms)
    share = -(-len(examples) // world_size)
    mine = [(rank + step * world_size) % len(examples) for step in range(share)]
    lengths = [sum(len(s.input_ids) + len(s.labels) for s in examples[i].values()) for i in mine]

    def run(batch: list[int]) -> None:
        places = [mine[i] for i in batch]
        found = {name: outputs(model, [examples[i][name] for i in places], pad_id=pad_id) for name in examples[0]}
        table.add(places, found)

    with inference(model):
        if world_size == 1:
            run_batches(lengths, batch_size, run)
        else:
            for batch in batches(lengths, batch_size):
                run(batch)
    if world_size > 1:
        own = range(rank, len(examples), world_size)
        table.rows = _reduced(table.rows, own, next(model.parameters()).device)
    return table.scores()


def blank_scores(examples: Sequence[Example], terms: Terms, *, is_encoder_decoder: bool) -> Scores:
    """Scores without a model: names, weights, coefficients and directions are those of any model, sums mean nothing.

    Raises:
        ValueError: as `evaluate`.
    """
    table = ScoreTable(examples, terms)
    found = {name: blank_outputs([example[name] for example in examples], is_encoder_decoder) for name in examples[0]}
    table.add(range(len(examples)), found)
    return table.scores()


def _num_bytes(examples: Sequence[Example]) -> Array | None:
    """Bytes of each example's targets, (n,); None where they aren't known of all."""
    if isinstance(examples, ExampleTable):
        found = examples.num_bytes()
        return None if found is None else found.astype(np.float64)
    each = [[sequence.num_bytes for sequence in example.values()] for example in examples]
    if any(count is None for counts in each for count in counts):
        return None
    return np.array([sum(filter(None, counts)) for counts in each], dtype=np.float64)


def _columns(name: str, term: Term, batch_size: int) -> Array:
    """sum and weight, (B, 2)."""
    for tensor in (term.sum, term.weight):
        if tuple(tensor.shape) != (batch_size,):
            raise ValueError(
                f"the method's term {name!r} has shape {tuple(tensor.shape)}; "
                f"expected one value per example: ({batch_size},)"
            )
    return torch.stack([term.sum.double(), term.weight.double()], -1).cpu().numpy()


def _reduced(rows: dict[str, Array], own: range, device: torch.device) -> dict[str, Array]:
    """Every process's own rows together, on every process."""
    stacked = np.stack(list(rows.values()))
    kept = np.zeros_like(stacked)
    kept[:, own] = stacked[:, own]
    tensor = torch.from_numpy(kept).to(device)
    torch.distributed.all_reduce(tensor)
    return dict(zip(rows, tensor.cpu().numpy(), strict=True))


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("there are no examples to evaluate; check the eval data")
    for index, example in enumerate(examples):
        if example.keys() != examples[0].keys():
            raise ValueError(
                f"example {index} has sequences {sorted(example)} but example 0 has {sorted(examples[0])}; "
                "a method encodes every record into the same names (labels all IGNORED where nothing is to be learned)"
            )
