"""From files to encoded records, on the driver: all input is checked here, before an accelerator is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from raytune_llm.data.config import OnError
from raytune_llm.data.doctor.advice import DEFAULT_HORIZON, Horizon
from raytune_llm.data.doctor.diagnosis import Diagnosis, UnusableData
from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.encoding.encode import EncodedSplits, encode_splits
from raytune_llm.data.encoding.usable import encode_usable
from raytune_llm.data.examples import Examples
from raytune_llm.data.files import Splits, load
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.mixture import epoch_size
from raytune_llm.data.records import Chat
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.data.tokenizing.template import PLAIN_TEMPLATE
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError, require
from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.cost import cost_note
from raytune_llm.jobs.drift import Guard, guard_of
from raytune_llm.jobs.held_out import check_held_out, examples_of_trials, seen_by_trials
from raytune_llm.jobs.metric import choose_metric
from raytune_llm.jobs.precompute import Precomputed
from raytune_llm.jobs.schema import DataJob, SweepJob, TrainJob
from raytune_llm.methods.base import CheckContext
from raytune_llm.models.load_options import check_quantization
from raytune_llm.stores.choices import name_of
from raytune_llm.sweep.backends.base import Backend
from raytune_llm.sweep.plan import SUBSET, Plan
from raytune_llm.training.trainer_arguments import check_passed_on, split_batch

OF_BATCHES = ("tuning.batch_size", "tuning.micro_batch_size", "scaling.num_workers", "scaling.gpus_per_worker")
"""Keys that decide together how a step's examples are divided, and whether they can be."""
LOOKED_AT = 1000
"""First records of a split that show if it has conversations."""


@dataclass(frozen=True)
class Prepared:
    """A job's data, sound and encoded."""

    splits: Splits
    tokens: Tokens
    encoded: EncodedSplits
    """Every record once, for the comparison after training."""
    examples: Examples
    """What trials are trained and evaluated on."""
    diagnosis: Diagnosis
    better: Better | None
    """The direction of method.metric; None without eval records."""
    answering: Answering | None
    """What trials answer at each evaluation; None where method.metric isn't one of answers."""
    guard: Guard | None
    """The general prompts by which drift is measured; None where it isn't."""

    @property
    def mean_tokens(self) -> float:
        """Of a training example, prompt and completion."""
        return float(ExampleTable.of(self.encoded.train.examples).lengths().mean())


def prepare(job: DataJob, read: Splits | None = None) -> Prepared:
    """Read (unless it has been), parse, encode and examine the job's data for its base and method. Raises
    InputError, UnusableData where the data have problems."""
    splits = read or load(job.data, job.method.records, job.seed)
    facts = job.model.facts
    max_tokens = facts.max_tokens(job.data.max_tokens)
    tokens = Tokens(job.model.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=facts.is_encoder_decoder)
    guard = guard_of(job, tokens)
    if job.data.on_error is OnError.skip:
        splits, encoded = encode_usable(splits, tokens, job.method.encode)
    else:
        encoded = encode_splits(splits, tokens, job.method.encode)
    check_method(job, encoded, tokens, is_carved=splits.carved)
    diagnosis = examine(
        splits,
        encoded,
        tokens,
        context_tokens=facts.context_tokens,
        horizon=horizon_of(job, splits),
        strict=job.data.strict,
        more=(*splits.findings, *left_out(splits), *of_base(job, splits, tokens), *cost_of(job, encoded, splits)),
    )
    if diagnosis.problems:
        raise UnusableData(diagnosis)
    if isinstance(job, SweepJob):
        check_held_out(job, encoded)
    seen = seen_by_trials(job, encoded)
    examples = Examples(seen.train.examples, seen.eval.examples)
    better, answering = choose_metric(job, seen, tokens)
    return Prepared(splits, tokens, encoded, examples, diagnosis, better, answering, guard)


def with_sources(found: Precomputed, job: DataJob, splits: Splits) -> Examples:
    """What trials are trained and evaluated on, with the locations of data.train that examples are of where there are
    several."""
    origins, train = splits.origins.get("train"), found.encoded.train
    examples = examples_of_trials(job, found.encoded, found.examples)
    if origins is None or not job.data.weights:
        return examples
    return dataclasses.replace(examples, sources=origins.places()[train.places])


def cost_of(job: DataJob, encoded: EncodedSplits, splits: Splits) -> Iterator[Finding]:
    """What an epoch costs, where training is no sampling."""
    batch_size = horizon_of(job, splits).batch_size
    note = None if job.method.needs.sampling else cost_note(job.model.facts, encoded.train, batch_size)
    if note is not None:
        yield note


def left_out(splits: Splits) -> Iterator[Finding]:
    """The lines that can't be used, where they are left out."""
    if count := splits.rejects.count:
        some = f"{count} of {many(splits.num_lines, 'line')} {'is' if count == 1 else 'are'}"
        text = f"{some} left out because they can't be used; rejects.jsonl has them"
        yield Finding("skipped_lines", Severity.warning, "", text, count)


def of_base(job: DataJob, splits: Splits, tokens: Tokens) -> Iterator[Finding]:
    """What these records meet in the base: an EOS that it never learned, or no chat template of its own."""
    if job.model.eos.note is not None:
        yield Finding("eos", Severity.warning, "", job.model.eos.note)
    given = job.model.chat_template is None and PLAIN_TEMPLATE in (tokens.tokenizer.chat_template or "")
    if given and any(
        isinstance(record, Chat) for _, records in splits.items() for record in islice(records, LOOKED_AT)
    ):
        text = (
            "the base has no chat template; conversations are written as lines of System:, User: and Assistant: "
            "(model.chat_template gives another)"
        )
        yield Finding("plain_template", Severity.note, "", text)


def horizon_of(job: DataJob, splits: Splits) -> Horizon:
    """The batch size and steps of a job, as far as it has them and they are one for all its trials, and the examples of
    an epoch."""
    count, mixture = None, job.data.mixture
    if mixture.subset != 1 or any(weight != 1 for weight in mixture.weights.values()):
        count = epoch_size(records_of_sources(job, splits), subset=mixture.subset, weights=[*mixture.weights.values()])
    if not isinstance(job, TrainJob):
        return dataclasses.replace(DEFAULT_HORIZON, num_examples=count)
    is_swept = isinstance(job, SweepJob) and {"tuning.steps", "tuning.batch_size"} & set(job.sweep.keys())
    return Horizon(job.tuning.batch_size, None if is_swept else job.tuning.steps, count)


def records_of_sources(job: DataJob, splits: Splits) -> list[int]:
    """How many records of train each of its locations gave."""
    origins = splits.origins.get("train")
    if origins is None or not job.data.weights:
        return [len(splits.train)]
    counts: list[int] = np.bincount(origins.places(), minlength=len(job.data.weights)).tolist()
    return counts


def check_method(job: DataJob, encoded: EncodedSplits, tokens: Tokens, *, is_carved: bool) -> None:
    """Refuse what the method can't be trained with, before a model is loaded. Raises InputError."""
    training = job if isinstance(job, TrainJob) else None
    job.method.check(
        CheckContext(
            base=job.model,
            registry_dir=job.registry_dir,
            records=encoded.train.records,
            carved=encoded.eval.records if is_carved else (),
            example=next(iter(encoded.train.examples), None),
            decode=partial(tokens.tokenizer.decode, skip_special_tokens=True),
            adapter=training.adapter if training else None,
            allow_modules=tuple(training.allow_modules) if training else (),
            swept=frozenset(job.sweep.keys()) if isinstance(job, SweepJob) else frozenset(),
        )
    )


def check_knobs(job: TrainJob) -> None:
    """Refuse an adapter that the base can't take, a batch that can't be divided, arguments that the trainer can't be
    given, and axes of what all trials share. Raises InputError."""
    swept = job.sweep.keys() if isinstance(job, SweepJob) else []
    needs = job.method.needs
    for key in swept:
        if key in needs.shared_keys or any(stage.decides(key) for stage in needs.stages):
            raise InputError(f"{key} is no axis: all trials share one {key}; not for sweep.space or sweep.first")
    if job.scaling.trainer:
        config = job.method.trainer_config(is_encoder_decoder=job.model.facts.is_encoder_decoder)
        check_passed_on(job.scaling.trainer, config)
    in_parts = isinstance(job, SweepJob) and (job.sweep.more_labels or SUBSET in swept)
    if job.data.subset < 1 or in_parts:
        allowed = "1 with this method: each record's loss is coupled with others, drawn from all before training"
        require(needs.group_size == 1, "data.subset", job.data.subset, allowed)
    check_quantization(job.model.from_pretrained)
    if job.adapter.trains_base and job.model.is_quantized:
        raise InputError("adapter=full can't train the quantised weights of model.from_pretrained; use adapter=lora")
    if "tuning.adapter_size" not in swept:
        job.adapter.check(job.tuning.adapter_size, job.model.facts)
    if not set(swept) & set(OF_BATCHES):
        split_batch(job.tuning, job.scaling.num_workers)


def check_sweep(job: SweepJob, planned: Plan) -> None:
    """Refuse a space with points that the base can't take, and a port that is taken, before anything runs. Raises
    InputError."""
    job.sweep.search.check(planned)
    reason = job.sweep.backend.why_not(job.trial_config(), planned)
    require(reason is None, "sweep/backend", name_of(job.sweep.backend, Backend), f"auto or ray_train ({reason})")
    for size in planned.candidates("tuning.adapter_size"):
        job.adapter.check(size, job.model.facts)
    for point in planned.combinations(OF_BATCHES):
        trial = job.with_values(point)
        split_batch(trial.tuning, trial.scaling.num_workers)
    if job.serve.deploy:
        require(job.kind != "reward", "serve.deploy", True, "false with a method whose result scores answers")
        job.serve.check_port()
