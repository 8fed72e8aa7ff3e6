"""Distilling step-by-step (Hsieh et al., 2023, arXiv 2305.02301): a student learns labels and a teacher's reasons.

    loss = alpha · label + (1 − alpha) · rationale,      each Σ_tokens −log p / number of its target tokens in the step

Label and rationale are two tasks on one student, distinguished by a prefix of the prompt; only the label task is
run at inference, so an answer costs no more than without rationales. A record that lacks a rationale (or a label)
contributes the other task only. Targets are templates, which makes the baselines values of the same method: alpha 1
is fine-tuning on labels, label_target "{rationale} The answer is {label}" the single task that reasons before it
answers, rationale_target "{label}" two tasks without any reasons. Leaves out where rationales come from: annotation/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.records import Rationale, Record, Text
from raytune_llm.errors import InputError, require
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.adapter_init import AdapterInit
from raytune_llm.methods.common.loss_terms import LossTermsMethod
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import CheckContext

FIELDS = ("label", "rationale")


@dataclass(frozen=True, kw_only=True)
class DSS(AdapterInit, LossTermsMethod):
    """Learn labels and the reasons for them as two tasks."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    alpha: float
    """Weight of the label task's loss, 1 − alpha being the rationale task's; 0 ≤ alpha ≤ 1."""
    label_prefix: str
    """Prefix of the prompt in the label task. Empty: the tuned model answers the plain prompt."""
    rationale_prefix: str
    """Prefix of the prompt in the rationale task; must differ from label_prefix."""
    label_target: str
    """Target of the label task: a template of {label}, perhaps after {rationale} (then also set
    evaluation.answer_after)."""
    rationale_target: str
    """Target of the rationale task: a template of {rationale}; {label} for a control without reasons."""

    records = (Rationale,)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(
            self.label_prefix != self.rationale_prefix,
            "method.rationale_prefix",
            repr(self.rationale_prefix),
            "anything but method.label_prefix: otherwise the student can't know which task it is given",
        )
        require(
            "label" in _fields("label_target", self.label_target),
            "method.label_target",
            self.label_target,
            "a template with {label}",
        )
        require(
            bool(_fields("rationale_target", self.rationale_target)),
            "method.rationale_target",
            self.rationale_target,
            "a template with {rationale} or {label}",
        )

    @property
    def needs(self) -> Needs:
        tasks = ("label_prefix", "rationale_prefix", "label_target", "rationale_target")
        return Needs(
            init_adapter=self.init_adapter, shared_keys=(*self.init_keys, *(f"method.{name}" for name in tasks))
        )

    def check(self, context: CheckContext) -> None:
        """Refuse records of which none has what a task that counts is to learn. Raises InputError."""
        super().check(context)
        for target, weight in (("label_target", self.alpha), ("rationale_target", 1 - self.alpha)):
            if weight == 0 or "method.alpha" in context.swept or not context.records:
                continue
            for name in sorted(_fields(target, getattr(self, target))):
                if all(getattr(record, name) is None for record in context.records):
                    carved = sum(getattr(record, name) is not None for record in context.carved)
                    have = "record has one, but was" if carved == 1 else "records have one, but were"
                    where = f" ({carved} {have} carved into the eval set: name data.eval)"
                    raise InputError(
                        f"no record of data.train has a {name}, which method.{target} names: there is nothing to "
                        f"learn for it{where if carved else ''}; have a teacher write them (jobs/annotate.py, or "
                        "teacher=…)" + ("" if name == "label" else ", or set method.alpha=1 to learn labels alone")
                    )

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        assert isinstance(record, Rationale)
        label = self._task(record, self.label_prefix, self.label_target, tokens)
        rationale = self._task(record, self.rationale_prefix, self.rationale_target, tokens)
        present = label or rationale
        if present is None:
            return None
        nothing = TokenSequence(present.input_ids[:1], [IGNORED])
        return {"label": label or nothing, "rationale": rationale or nothing}

    def question(self, record: Record) -> tuple[Text, str] | None:
        assert isinstance(record, Rationale)
        return None if record.label is None else (self.label_prefix + record.prompt, record.label)

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        label, rationale = outputs["label"], outputs["rationale"]
        num_tokens = label.mask.sum(-1)
        has_label = (num_tokens > 0).to(label.mask.dtype)
        tasks = {
            "label_loss": Term(_nats(label), num_tokens, self.alpha),
            "rationale_loss": Term(_nats(rationale), rationale.mask.sum(-1), 1 - self.alpha),
        }
        whole = [task for task in tasks.values() if task.coefficient == 1]
        if whole:  # one task is the whole loss; it keeps its own name too, so that sweeps over alpha can select by it
            tasks = {"loss": whole[0], **{name: replace(task, coefficient=0.0) for name, task in tasks.items()}}
        return {
            **tasks,
            # All target tokens being first choices is what greedy generation needs to give the whole target.
            "accuracy": Term(has_label * (label.correct.sum(-1) == num_tokens), has_label, 0.0, Better.higher),
        }

    def _task(self, record: Rationale, prefix: str, target: str, tokens: Tokens) -> TokenSequence | None:
        """The sequence of a task, or None where the record lacks what its target names."""
        values = {name: getattr(record, name) for name in _fields("target", target)}
        if None in values.values():
            return None
        return tokens.completion(prefix + record.prompt, target.format(**values))


def _nats(task: Outputs) -> Tensor:
    """−log p of the whole target, (B,)."""
    return -(task.logprobs * task.mask).sum(-1)


def _fields(key: str, template: str) -> set[str]:
    """The record's fields that a template names. Raises InputError for others and for what isn't a template."""
    allowed = f"a template of {' and '.join(f'{{{name}}}' for name in FIELDS)}, other braces doubled"
    try:
        found = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"method.{key}={template} is not allowed ({error}); allowed: {allowed}") from error
    require(set(found) <= set(FIELDS), f"method.{key}", template, allowed)
    return set(found)
