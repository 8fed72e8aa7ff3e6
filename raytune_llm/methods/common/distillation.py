"""What the methods that learn from a teacher share: their records, and how a student's distance from it is measured.

Tokens: divergences between distributions. Features: distances between hidden states in the same places. Relations:
distances and angles between examples, in a student's and in a teacher's hidden states, whatever the widths of both.
Shape letters: B examples, T tokens, G examples of a group, k the teacher's likeliest tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from raytune_llm.data.examples import Example
from raytune_llm.data.question import question
from raytune_llm.data.records import Chat, PlainText, Record, Supervised, Text
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.common.loss_terms import LossTermsMethod
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import CheckContext, Needs


class Divergence(Enum):
    """How far a student's distribution q is from a teacher's p."""

    forward = "forward"
    """KL(p ‖ q), which covers all modes of the teacher."""
    reverse = "reverse"
    """KL(q ‖ p), which seeks the teacher's main modes (Gu et al., 2024, arXiv 2306.08543)."""
    jensen_shannon = "jensen_shannon"
    """½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ p + ½ q (Agarwal et al., 2024, arXiv 2306.13649, at β = ½)."""


@dataclass(frozen=True, kw_only=True)
class Student(LossTermsMethod):
    """A method that learns answers and, by its `terms`, more from a teacher."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""

    records: ClassVar[tuple[type, ...]] = (Supervised, Chat, PlainText)

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """As Method.needs."""

    def check(self, context: CheckContext) -> None:
        """Refuse a base, teacher or layers that the method can't use. Raises InputError."""
        from raytune_llm.methods.model_refs import check_base, check_teacher

        check_base(self.needs, context.base)
        check_teacher(self.needs, context.base, context.registry_dir)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        if isinstance(record, Chat):
            sequence = tokens.conversation(record.messages)
        elif isinstance(record, PlainText):
            sequence = tokens.text(record.text)
        else:
            assert isinstance(record, Supervised)
            sequence = tokens.completion(record.prompt, record.completion)
        return None if sequence is None else {"completion": sequence}

    def question(self, record: Record) -> tuple[Text, str] | None:
        return question(record)


@dataclass(frozen=True, kw_only=True)
class TopKStudent(Student):
    """A student of a teacher's k likeliest tokens."""

    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the divergence's; 0 ≤ alpha ≤ 1."""
    divergence: Divergence
    """forward KL(teacher ‖ student), reverse KL(student ‖ teacher) or jensen_shannon."""
    temperature: float
    """Softens both distributions; > 0, 1 = as they are. Gradients are scaled by its square."""
    teacher_top_k: int
    """The teacher's likeliest tokens that are compared for each label token; ≥ 1."""

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(self.temperature > 0, "method.temperature", self.temperature, "> 0")
        require(self.teacher_top_k >= 1, "method.teacher_top_k", self.teacher_top_k, "≥ 1")

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        labels = label_terms(completion, self.alpha)
        if completion.teacher_logprobs is None:
            return name_loss(labels)
        divergence = divergence_term(completion, self.divergence, self.temperature, 1 - self.alpha)
        return name_loss(labels | {"divergence": divergence})


def label_terms(completion: Outputs, coefficient: float) -> dict[str, Term]:
    """Cross-entropy on the labels' tokens, and the share of them that is the student's first choice."""
    num_tokens = completion.mask.sum(-1)
    return {
        "label_loss": Term(-(completion.logprobs * completion.mask).sum(-1), num_tokens, coefficient),
        "token_accuracy": Term(completion.correct.sum(-1), num_tokens, 0.0, Better.higher),
    }


def name_loss(terms: dict[str, Term]) -> dict[str, Term]:
    """The terms; where the labels' loss is the whole loss (alpha = 1, or without a teacher's outputs, as when a version
    is compared with its base), it is `loss`, at weight 1, and keeps its own name too."""
    if any(term.coefficient for name, term in terms.items() if name != "label_loss"):
        return terms
    label = terms["label_loss"]
    return {"loss": Term(label.sum, label.weight), **terms, "label_loss": Term(label.sum, label.weight, 0.0)}


def divergence_term(completion: Outputs, kind: Divergence, temperature: float, coefficient: float) -> Term:
    """τ² · D(p, q) over label tokens, p and q softened by τ, over the teacher's k likeliest tokens and the rest as one
    more outcome (Hinton et al., 2015, arXiv 1503.02531)."""
    assert completion.top_k_logprobs is not None and completion.teacher_logprobs is not None
    apart = DIVERGENCES[kind](*softened(completion.teacher_logprobs, completion.top_k_logprobs, temperature))
    distance = temperature**2 * (apart.to(completion.mask.dtype) * completion.mask).sum(-1)
    return Term(distance, completion.mask.sum(-1), coefficient)


def softened(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over k + 1 outcomes, (…, k + 1) in fp64, the last being the rest.

    Args:
        teacher: log p of the teacher's k likeliest tokens and of all others together, nats, (…, k + 1); −inf where the
            k are the whole vocabulary.
        student: log q of the same k tokens, nats, (…, k).
    """
    import torch

    known = student.double()
    rest = (1 - known.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()
    whole = torch.isneginf(teacher[..., -1:])
    rest = torch.where(whole, torch.full_like(rest, NOTHING), rest)
    teacher = teacher.double().clamp(min=NOTHING)
    outcomes = torch.cat([known, rest], -1)
    return (teacher / temperature).log_softmax(-1), (outcomes / temperature).log_softmax(-1)


SMALLEST = 1e-12
"""Of the rest's probability, which rounding may bring to 0; of squared lengths that are divided by."""
NOTHING = -1e4
"""log p of an outcome that can't be: finite, so that 0 · log 0 is 0 and no gradient is NaN."""


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p − log q) over the last dimension, from log-probabilities; nats."""
    return (p.exp() * (p - q)).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ p + ½ q, from log-probabilities; nats."""
    import torch

    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (kl(p, middle) + kl(q, middle))


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    Divergence.forward: kl,
    Divergence.reverse: lambda p, q: kl(q, p),
    Divergence.jensen_shannon: jensen_shannon,
}


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """‖s − t‖² / ‖t‖² over the last dimension; 0 where both are 0."""
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp(min=SMALLEST)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(s, t) over the last dimension."""
    from torch.nn.functional import cosine_similarity

    return 1 - cosine_similarity(student, teacher, dim=-1)


def distances(points: Tensor) -> Tensor:
    """Of each pair i < j of a group, ‖pᵢ − pⱼ‖ over their mean, (B, pairs), from points (B, G, width)."""
    import torch

    first, second = torch.triu_indices(points.shape[1], points.shape[1], offset=1, device=points.device)
    apart = (points[:, first] - points[:, second]).square().sum(-1).clamp(min=SMALLEST).sqrt()
    return apart / apart.mean(-1, keepdim=True)


def angles(points: Tensor) -> Tensor:
    """Of each triple of a group, the cosine of the angle at j between i < k, (B, triples), from (B, G, width)."""
    import torch

    count = points.shape[1]
    triples = [(i, j, k) for j in range(count) for i in range(count) for k in range(i + 1, count) if j not in (i, k)]
    i, j, k = torch.tensor(triples, device=points.device).T

    def towards(one: Tensor) -> Tensor:
        difference = points[:, one] - points[:, j]
        return difference / difference.square().sum(-1, keepdim=True).clamp(min=SMALLEST).sqrt()

    return (towards(i) * towards(k)).sum(-1)


def relation_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss (δ = 1) between relations, meaned over them: (B,)."""
    from torch.nn.functional import smooth_l1_loss

    return smooth_l1_loss(student, teacher, reduction="none").mean(-1)
