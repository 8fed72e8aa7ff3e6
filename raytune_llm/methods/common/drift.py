"""Drift: how far tuning has moved a model from its base, on the base's own greedy answers to general prompts.

    eval/drift      = mean over answer tokens of KL(base ‖ tuned), nats
    eval/drift_loss = mean over answer tokens of log p_base(token) − log p_tuned(token), nats

The KL is over the base's TOP_K likeliest tokens and all others together as one more outcome (methods/common/
distillation.py): the whole vocabulary where that is no larger, else a lower bound of the true KL, by the log-sum
inequality. The base ran once, before training (jobs/guard.py). Both are 0 for the base itself.
"""

from __future__ import annotations

from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.common.distillation import kl, softened
from raytune_llm.models.outputs import Outputs

TOP_K = 32
"""Of the base's likeliest tokens, each an outcome of its own."""
ANSWER = "answer"
"""Name of the sequence: a prompt with the base's answer to it."""


def drift_terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
    """Sums over each answer's tokens, and their number."""
    answer = outputs[ANSWER]
    assert answer.teacher_logprobs is not None and answer.top_k_logprobs is not None and answer.reference is not None
    num_tokens = answer.mask.sum(-1)
    apart = kl(*softened(answer.teacher_logprobs, answer.top_k_logprobs, temperature=1.0))
    lost = answer.reference - (answer.logprobs * answer.mask).sum(-1)
    return {
        "drift": Term((apart * answer.mask).sum(-1), num_tokens, 0.0, Better.lower),
        "drift_loss": Term(lost, num_tokens, 0.0, Better.lower),
    }
