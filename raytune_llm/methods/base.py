"""The contract of a tuning method with the training backends and with evaluation.

An Example is one record, encoded as named token sequences: {"completion": …} for sft, {"chosen": …, "rejected": …}
for preferences. A backend runs every sequence through the model once and hands the outputs, by the same names, to
`Method.terms`, which gives each example's part of the loss. The backend owns reduction: it divides each term's sum by
its weight over the whole optimizer step of its own trial, so that accumulation, padding and packing change nothing.

Shape letters: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from raytune_llm.data.examples import Example
from raytune_llm.data.groups import GROUP_MEMBER
from raytune_llm.evaluation.metrics import Metric, answer_directions, label_set
from raytune_llm.evaluation.terms import Better, Term
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

    from raytune_llm.data.config import Data
    from raytune_llm.data.records import Record, Text
    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.evaluation.loss import Scores
    from raytune_llm.models.adapters.base import Adapter
    from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A version that a method needs, trained before it by a job of its own, once for all trials."""

    name: str
    """The version is named after the job and this: NAME-sft."""
    meaning: str
    """Shown on the terminal."""
    method: Method
    steps: int
    data: str | None
    """Location of its records; null = those of the job."""
    data_key: str | None
    """The key that gives `data`, in full; None where there is none."""
    key: str
    """The key of the job that then names the version, in full."""
    keys: tuple[str, ...]
    """Further keys of the job that the stage reads, in full; a mapping's stands for all keys below it."""
    remedy: str
    """What the user can do when the job's records don't suit the stage."""

    def decides(self, key: str) -> bool:
        """Whether a key of the job, like method.sft_steps, is this stage's."""
        return any(key == own or key.startswith(f"{own}.") for own in (self.key, *self.keys))

    def records_of(self, data: Data) -> Data:
        """The job's records, or the stage's own, of which an eval set is carved."""
        data = replace(data, guard=None) if self.method.needs.score else data
        return data if self.data is None else replace(data.with_train(self.data), subset=1.0, eval=None, test=None)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs in addition to a base and records."""

    reference: bool = False
    """Outputs.reference: computed once before training, under the model that training starts from."""
    score: bool = False
    """Outputs.score: the model is a reward model, whose head is trained with the adapter; it has no label
    log-probabilities."""
    teacher_top_k: int = 0
    """The k of Outputs.top_k_logprobs and teacher_logprobs, which the teacher gives once before training; 0 =
    neither."""
    layers: tuple[int, ...] = ()
    """Of Outputs.features: hidden states of the student, 0 = embeddings, n = after the n-th block, −1 = the last."""
    teacher_layers: tuple[int, ...] = ()
    """Of Outputs.teacher_features: the teacher's, computed once before training."""
    group_size: int = 1
    """Examples that the loss couples. The group_size − 1 others are drawn before training and join each example as its
    sequences member1, member2 …"""
    teacher: str | None = None
    """NAME@VERSION of the registry, or a base; null = this job's base without an adapter."""
    init_adapter: str | None = None
    """The method's own field of this name. NAME@VERSION of the registry: the adapter in which training continues, and
    the reference of methods that have one; null = a new adapter on the base, and the base is the reference."""
    stages: tuple[Stage, ...] = ()
    """Trained first, in this order."""
    shared_keys: tuple[str, ...] = ()
    """Keys of the job, in full, that have one value for all trials, so that no sweep varies them."""
    teacher_model: bool = False
    """TrainerInputs.teacher: the teacher itself, kept in memory with the student."""
    decoder_only_reason: str | None = None
    """Why it takes no encoder-decoder base; None = it does."""
    not_packable_reason: str | None = None
    """Why its trials can't share one base although it has terms; None = they can."""
    gpu_for: str | None = None
    """The setting that needs a GPU, as the user writes it; None = a CPU will do."""
    sampling: bool = False
    """It learns from completions of the model itself: it is a SamplingMethod, without terms, and runs on ray_train."""

    @property
    def answers(self) -> bool:
        """Whether what it tunes is judged by greedy answers: neither scores nor sampled completions."""
        return not self.score and not self.sampling

    @property
    def precomputes_teacher(self) -> bool:
        """Whether a teacher runs on the examples before training."""
        return bool(self.teacher_top_k or self.teacher_layers)


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """All that a method's trainer is made from."""

    model: PreTrainedModel
    """Already adapted."""
    examples: Sequence[Example]
    indices: list[int]
    """Examples in the order of training, as many as the run needs."""
    tokenizer: Any
    arguments: dict[str, Any]
    """TrainingArguments, by name, which take the examples sequentially."""
    callbacks: list[TrainerCallback]
    teacher: Any = None
    """The teacher itself with Needs.teacher_model, else None."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The config of a method's trainer, whose other arguments are a trial's."""

    kind: type[TrainingArguments]
    """TRL's or transformers' class of it."""
    own: frozenset[str] = frozenset()
    """The arguments that the method sets."""

    def build(self, arguments: Mapping[str, Any], **own: Any) -> TrainingArguments:
        """It, from a trial's arguments and the method's own."""
        assert own.keys() <= self.own, f"{sorted(own.keys() - self.own)} are not declared in TrainerConfig.own"
        return self.kind(**{**arguments, **own})


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What a method may look at to refuse a job before a model is loaded."""

    base: Base
    registry_dir: str
    records: Sequence[Record]
    """Those of data.train."""
    carved: Sequence[Record]
    """Those taken from data.train as the eval set; () where data.eval gives one."""
    example: Example | None
    """The first of them as the method encodes it; None when truncation left nothing of it."""
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, without special tokens."""
    adapter: Adapter | None
    """None when only data are checked, without a training: what the training needs is then not checked."""
    allow_modules: tuple[str, ...]
    """Python modules whose functions the job may call."""
    swept: frozenset[str]
    """Keys that a sweep varies."""


class Method(Protocol):
    """A file in methods/ with a dataclass of this shape is a method; its YAML names it. Nothing else is edited."""

    @property
    def records(self) -> tuple[type, ...]:
        """The record kinds it takes (data/records.py)."""
        ...

    @property
    def metric(self) -> str:
        """The eval metric that stops, ranks and selects trials, in the direction that `metric_directions` gives."""
        ...

    @property
    def needs(self) -> Needs:
        """What it reads besides label log-probabilities, starts from, and has trained first."""
        ...

    def check(self, context: CheckContext) -> None:
        """Refuse what it can't be trained with, before a model is loaded. Raises InputError naming key,
        value and remedy."""
        ...

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        """The record's token sequences, or None when truncation left nothing to learn from."""
        ...

    def question(self, record: Record) -> tuple[Text, str] | None:
        """The prompt that a tuned model is given for this record and the expected answer; None where there is none.
        data/question.py has what suits most methods."""
        ...

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        """Named terms; the name is the metric's after 'train/' or 'eval/'.

        Names, weights, coefficients and directions must not depend on the values in the outputs, only on masks and on
        which fields are there: backends call it on blank outputs (models.forward.blank_outputs) to learn the weights of
        a step before it runs.
        """
        ...

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        """A TRL or transformers trainer for this method."""
        ...

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        """The config that its trainer on such a base takes."""
        ...


@dataclass(frozen=True)
class Measurement:
    """Metrics and completions of a policy on some examples."""

    metrics: dict[str, Metric]
    """Resamplable, by their full names."""
    texts: list[tuple[str, str, str]]
    """Prompt, the record's own answer, completion, of each example."""


class Session(Protocol):
    """A method that samples, at work in one process."""

    refs: ModelRefs
    eval_prompts: int
    """Examples measured at each evaluation of a training."""
    train_metrics: tuple[str, ...]
    """What its trainer logs of the completions that the model learns from, as the trainer names it."""

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        """As Method.trainer."""
        ...

    def measure(self, model: Any, examples: Sequence[Example], reference: Any = None) -> Measurement:
        """The model's metrics against the reference; None = the model before it learned."""
        ...

    def why_stop(self, metrics: dict[str, float]) -> str | None:
        """Why these eval metrics end the training, with what to change, or None."""
        ...

    def reference_model(self) -> Any:
        """The model that training started from."""
        ...


@runtime_checkable
class SamplingMethod(Protocol):
    """A Method with Needs.sampling: instead of `terms` and `trainer` it has these."""

    def versions(self) -> tuple[str, ...]:
        """Registry references of the versions whose files its session reads."""
        ...

    def directions(self) -> dict[str, Better]:
        """The direction of each metric that its session measures, by full name."""
        ...

    def session(self, refs: ModelRefs) -> Session:
        """Its training and measuring in this process. Raises InputError when a reward can't be opened."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelRefs:
    """The models and settings that a session works with, in addition to the model it trains."""

    base: Base
    tokenizer: Any
    folders: Mapping[str, Path]
    """Files of each version that SamplingMethod.versions names, by its reference."""
    allow_modules: tuple[str, ...]
    batch_size: int
    """Prompts generated or scored at once."""
    seed: int
    device: str


def metric_directions(
    method: Method, example: Example, *, is_encoder_decoder: bool, references: Sequence[str] = ()
) -> dict[str, Better]:
    """The direction of each eval metric of a training, by full name, from any one of its examples: the only source of
    directions. A metric whose term has no weight on any eval example isn't reported although it is named here.
    `references`: the right answers to the eval records, where answers count too; terms go before them by name."""
    if isinstance(method, SamplingMethod):
        return method.directions()
    terms = blank_eval_scores(method, example, is_encoder_decoder=is_encoder_decoder).directions()
    return answer_directions(label_set(references)) | terms if references else terms


def blank_eval_scores(method: Method, example: Example, *, is_encoder_decoder: bool) -> Scores:
    """The scores of one example in an evaluation of a training, without a model: names, weights and directions hold,
    sums mean nothing. The example needs nothing of what frozen models add before training."""
    from raytune_llm.evaluation.loss import blank_scores

    needs = method.needs

    def terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
        unused = {
            "reference": not needs.reference,
            "score": not needs.score,
            "top_k_logprobs": not needs.teacher_top_k,
            "teacher_logprobs": not needs.teacher_top_k,
            "features": not needs.layers,
            "teacher_features": not needs.teacher_layers,
        }
        dropped: dict[str, Any] = {field: None for field, is_unused in unused.items() if is_unused}
        return method.terms({name: replace(found, **dropped) for name, found in outputs.items()})

    first = next(iter(example.values()))
    group = example | {f"{GROUP_MEMBER}{place}": first for place in range(1, needs.group_size)}
    return blank_scores([group], terms, is_encoder_decoder=is_encoder_decoder)
