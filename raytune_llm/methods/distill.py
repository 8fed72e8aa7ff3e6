"""Response-based distillation (Hinton et al., 2015, arXiv 1503.02531): a student learns a teacher's whole distribution.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · τ² · D(p, q),      both means over the label tokens
    forward          KL(p ‖ q), which covers all that the teacher may say
    reverse          KL(q ‖ p), which seeks what the teacher says most (Gu et al., 2024, arXiv 2306.08543)
    jensen_shannon   ½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ p + ½ q (Agarwal et al., 2024, arXiv 2306.13649, at β = ½)

p is the teacher, q the student, each over the teacher's k likeliest tokens and, as one more outcome, all the others
together; at k = the vocabulary the sums are exact. At temperature τ both are raised to 1/τ and normalised over these
outcomes. The teacher runs once, before training, so every trial shares what it said. Self-distillation is a teacher
that is an earlier version of the student. Leaves out on-policy, feature- and relation-based distillation.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from raytune_llm.data.question import question
from raytune_llm.data.records import Chat, Record, Supervised, Text
from raytune_llm.job import require
from raytune_llm.method import Example, Needs, Outputs, Term

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from raytune_llm.data.tokens import Tokens


class Divergence(Enum):
    """How far the student is from the teacher; the module has the formulas."""

    forward = "forward"
    reverse = "reverse"
    jensen_shannon = "jensen_shannon"


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learn what a teacher would say, with its doubts."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    teacher: str | None
    """NAME@VERSION of the registry (an earlier version of the student: self-distillation), or a base by its folder or
    id on the hub, of the student's vocabulary; null = the student's own base, to stay near it."""
    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the divergence's; 0 ≤ alpha ≤ 1."""
    divergence: Divergence
    """forward, reverse or jensen_shannon."""
    temperature: float
    """Softens both distributions; > 0, 1 = as they are. Gradients are scaled by its square."""
    num_candidates: int
    """The teacher's likeliest tokens that are kept for each label token; ≥ 1."""

    records = (Supervised, Chat)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(self.temperature > 0, "method.temperature", self.temperature, "> 0")
        require(self.num_candidates >= 1, "method.num_candidates", self.num_candidates, "≥ 1")

    @property
    def needs(self) -> Needs:
        return Needs(num_candidates=self.num_candidates, teacher=self.teacher)

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        if isinstance(record, Chat):
            sequence = tokens.conversation(record.messages)
        else:
            assert isinstance(record, Supervised)
            sequence = tokens.completion(record.prompt, record.completion)
        return None if sequence is None else {"completion": sequence}

    def question(self, record: Record) -> tuple[Text, str] | None:
        return question(record)

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        said = outputs["completion"]
        assert said.candidates is not None and said.teacher is not None
        num_tokens = said.mask.sum(-1)
        apart = DIVERGENCES[self.divergence](*softened(said.teacher, said.candidates, self.temperature))
        distance = self.temperature**2 * (apart.to(said.mask.dtype) * said.mask).sum(-1)
        return {
            "label_loss": Term(-(said.logprobs * said.mask).sum(-1), num_tokens, self.alpha),
            "divergence": Term(distance, num_tokens, 1 - self.alpha),
            "token_accuracy": Term(said.correct.sum(-1), num_tokens, coefficient=0.0),
        }

    def trainer(
        self,
        model: PreTrainedModel,
        examples: Seq[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        from raytune_llm.terms_trainer import terms_trainer

        return terms_trainer(
            self.terms, model, examples, indices, tokenizer=tokenizer, arguments=arguments, callbacks=callbacks
        )


def softened(teacher: Tensor, candidates: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over k + 1 outcomes, (…, k + 1) in fp64, the last being the rest.

    Args:
        teacher: log p of the k candidates and of all other tokens together, nats, (…, k + 1); −inf where the candidates
            are the whole vocabulary.
        candidates: the student's log q of the candidates, nats, (…, k).
    """
    import torch

    known = candidates.double()
    rest = (1 - known.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()
    whole = torch.isneginf(teacher[..., -1:])
    rest = torch.where(whole, torch.full_like(rest, NOTHING), rest)
    teacher = teacher.double().clamp(min=NOTHING)
    student = torch.cat([known, rest], -1)
    return tuple((logprobs / temperature).log_softmax(-1) for logprobs in (teacher, student))  # type: ignore[return-value]


SMALLEST = 1e-12
"""Of the rest's probability, which rounding may bring to 0."""
NOTHING = -1e4
"""log p of an outcome that can't be: finite, so that 0 · log 0 is 0 and no gradient is NaN."""


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p − log q) over the last dimension, from log-probabilities; nats."""
    return (p.exp() * (p - q)).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ p + ½ q, from log-probabilities; nats."""
    import math

    import torch

    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (kl(p, middle) + kl(q, middle))


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    Divergence.forward: kl,
    Divergence.reverse: lambda p, q: kl(q, p),
    Divergence.jensen_shannon: jensen_shannon,
}
