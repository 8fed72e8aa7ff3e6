"""What a tuning method is: the contract between methods/, the training backends and evaluation.

An Example is one record, encoded as named token sequences: {"completion": …} for sft, {"chosen": …, "rejected": …}
for preferences. A backend runs every sequence through the model once and hands the outputs, by the same names, to
`Method.terms`, which says for each example what it costs. The backend owns reduction: it divides each term's sum by
its weight over the whole optimizer step of its own trial, so that accumulation, padding and packing change nothing.

Shape letters: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from raytune_llm.data.examples import Example
from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from raytune_llm.data.files import Data
    from raytune_llm.data.records import Record, Text
    from raytune_llm.data.tokens import Tokens
    from raytune_llm.evaluation.metrics import Metric
    from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A version that a method needs and that is trained before it, by a job of its own, once for all trials."""

    name: str
    """The version is named after the job and this: NAME-sft."""
    meaning: str
    """What it is, for the terminal."""
    method: Method
    steps: int
    data: str | None
    """Location of its records; null = those of the job."""
    key: str
    """Of the method, which then names the version."""
    instead: str
    """What the user may do where the job's records don't suit it."""

    def decides(self, key: str) -> bool:
        """Whether a key of the job, like method.sft_steps, is this stage's."""
        name = f"method.{self.name}"
        return key in (f"{name}_steps", f"{name}_data", f"method.{self.key}") or key.startswith(f"{name}.")

    def records_of(self, data: Data) -> Data:
        """The job's records, or the stage's own, of which an eval set is carved."""
        return data if self.data is None else replace(data, train=self.data, eval=None, test=None)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs besides a base and records."""

    reference: bool = False
    """Outputs.reference: computed once before training, under what training begins with."""
    score: bool = False
    """Outputs.score: the model is then a reward model, whose head is trained beside the adapter; it gives no label
    log-probabilities."""
    num_candidates: int = 0
    """Of Outputs.candidates and Outputs.teacher: what `teacher` says is computed once before training; 0 = neither."""
    layers: tuple[int, ...] = ()
    """Of Outputs.features: hidden states of the student, 0 = embeddings, n = after the n-th block, −1 = the last."""
    teacher_layers: tuple[int, ...] = ()
    """Of Outputs.teacher_features: the teacher's, computed once before training."""
    mates: int = 0
    """Other examples that the loss couples each one with, as its sequences mate1, mate2 …, drawn before training."""
    teacher: str | None = None
    """NAME@VERSION of the registry, or a base; null = this job's base without an adapter."""
    init_adapter: str | None = None
    """NAME@VERSION of the registry: the adapter that training goes on in and that is the reference; null = a new one on
    the base, which then is."""
    stages: tuple[Stage, ...] = ()
    """What is trained first, in this order."""
    teacher_model: bool = False
    """Of `trainer`: it is given the teacher itself, as `teacher`."""
    causal: str | None = None
    """Why it takes no encoder-decoder base; None = it does."""
    alone: str | None = None
    """Why its trials can't share one base although it has terms; None = they can."""
    gpu_for: str | None = None
    """What needs a GPU, in the user's words; None = a CPU will do."""
    sampling: bool = False
    """Completions of the model itself: the method has no terms and no trainer but a `session` that has both a trainer
    and a measure, and it runs on ray_train."""

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher has to speak of the examples before training."""
        return bool(self.num_candidates or self.teacher_layers)


class Method(Protocol):
    """A file in methods/ with a dataclass of this shape is a method; its YAML names it. Nothing else is edited."""

    @property
    def records(self) -> tuple[type, ...]:
        """The record kinds it takes (data/records.py)."""
        ...

    @property
    def metric(self) -> str:
        """The eval metric that stops, ranks and selects trials; lower is better when it ends in 'loss'."""
        ...

    @property
    def needs(self) -> Needs:
        """What it reads besides label log-probabilities, goes on in, and has trained first."""
        ...

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        """The record's token sequences, or None when truncation left nothing to learn from."""
        ...

    def question(self, record: Record) -> tuple[Text, str] | None:
        """The prompt that a tuned model is asked of this record and the answer expected; None where there is none.
        data/question.py has what suits most methods."""
        ...

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        """Named terms; the name is the metric's after 'train/' or 'eval/'."""
        ...

    def trainer(
        self,
        model: PreTrainedModel,
        examples: Sequence[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """A TRL or transformers trainer for this method. `indices` are the examples in the order of training, as many
        as the run needs; `arguments` are TrainingArguments that take them sequentially; the model is already
        adapted. With Needs.teacher_model there is a further argument `teacher`, the model itself."""
        ...


@dataclass(frozen=True)
class Measurement:
    """How a policy did on some examples."""

    metrics: dict[str, Metric]
    """Resamplable, by their full names."""
    texts: list[tuple[str, str, str]]
    """Prompt, the record's own answer, completion, of each example."""


class Session(Protocol):
    """A method that samples, at work in one process."""

    companions: ModelRefs
    eval_prompts: int
    """Examples measured at each evaluation of a training."""

    def trainer(
        self,
        model: Any,
        examples: Sequence[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """As Method.trainer."""
        ...

    def measure(self, model: Any, examples: Sequence[Example], reference: Any = None) -> Measurement:
        """How the model does on examples beside the reference; None = the model before it learned."""
        ...

    def why_stop(self, metrics: dict[str, float]) -> str | None:
        """Why these eval metrics end the training, with what to change, or None."""
        ...

    def reference_model(self) -> Any:
        """The model that training began with."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelRefs:
    """What a session works with beside the model that it trains."""

    base: Base
    tokenizer: Any
    reward_folder: Path | None
    """A reward model's files; None where none is used."""
    judge_folder: Path | None
    """Those of a second one, which only judges."""
    init_folder: Path | None
    """The files of the adapter that training goes on in; None for a new one."""
    allow_modules: tuple[str, ...]
    batch_size: int
    """Prompts generated or scored at once."""
    seed: int
    device: str
