"""From files to encoded records, on the driver: all input is checked here, before an accelerator is touched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from raytune_llm.data.diagnosis import Diagnosis
from raytune_llm.data.doctor import examine
from raytune_llm.data.encode import EncodedSplits, encode_splits
from raytune_llm.data.examples import IGNORED, Examples, Rollout
from raytune_llm.data.files import Splits, load
from raytune_llm.data.records import Prompt
from raytune_llm.data.tokens import Tokens
from raytune_llm.errors import InputError, input_errors, require
from raytune_llm.jobs.schema import CheckJob, SweepJob, TrainJob
from raytune_llm.methods.model_refs import resolve_ref, resolve_teacher
from raytune_llm.methods.rewards.function import Function, load_function
from raytune_llm.methods.rewards.mixture import Weighed, scores
from raytune_llm.methods.rewards.text import Pattern
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep.plan import Plan
from raytune_llm.training.trial import split_batch


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


SHARED_BY_TRIALS = (
    "method.teacher",
    "method.num_candidates",
    "method.teacher_layers",
    "method.teacher_layer",
    "method.group_size",
)
"""Keys by which a teacher is asked once, before the trials."""


def prepare(job: CheckJob, read: Splits | None = None) -> Prepared:
    """Read (unless it has been), parse, encode and examine the job's data for its base and method. Raises
    InputError."""
    with input_errors():
        splits = read or load(job.data, job.method.records, job.seed)
        facts = job.model.facts
        max_tokens = facts.max_tokens(job.data.max_tokens)
        tokens = Tokens(job.model.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=facts.is_encoder_decoder)
        encoded = encode_splits(splits, tokens, job.method.encode)
        diagnosis = examine(splits, encoded)
        check_teacher(job)
    if job.model.eos.note is not None:
        diagnosis.warnings.append(job.model.eos.note)
    if diagnosis.problems:
        raise InputError(diagnosis.text())
    examples = Examples(encoded.train.examples, encoded.eval.examples)
    return Prepared(splits, tokens, encoded, examples, diagnosis)


def check_teacher(job: CheckJob) -> None:
    """Refuse a teacher that can't speak of the student's tokens, layers that aren't there, and a base that the method
    can't train. Reads no weights. Raises ValueError."""
    needs, facts = job.method.needs, job.model.facts
    if needs.causal is not None and facts.is_encoder_decoder:
        raise ValueError(f"model.name_or_path={job.model.name_or_path} is an encoder-decoder base: {needs.causal}")
    found, _ = resolve_teacher(needs.teacher, job.model, job.registry_dir)
    for key, layers, base in (("layers", needs.layers, job.model), ("teacher_layers", needs.teacher_layers, found)):
        most = base.facts.num_layers
        for layer in layers:
            require(
                -most - 1 <= layer <= most,
                f"method.{key}",
                layer,
                f"{-most - 1} to {most}: {base.name_or_path} has {most} blocks",
            )


def check_knobs(job: TrainJob) -> None:
    """Refuse an adapter that the base can't take and a batch that can't be divided. Raises InputError."""
    with input_errors():
        swept = job.sweep.axes() if isinstance(job, SweepJob) else {}
        if job.method.needs.sampling:
            check_sampling(job)
        for key in SHARED_BY_TRIALS if job.method.needs.asks_teacher else ():
            require(key not in swept, f"sweep.space.{key}", swept.get(key), f"no axis: all trials share one {key}")
        if "tuning.adapter_size" not in swept:
            job.adapter.check(job.tuning.adapter_size, job.model.facts)
        if "tuning.batch_size" not in swept:
            split_batch(job.tuning, job.scaling.num_workers)


def check_sampling(job: TrainJob) -> None:
    """Refuse a policy that can't be trained, before anything is loaded. Raises ValueError."""
    method: Any = job.method
    if job.model.facts.is_encoder_decoder:
        raise ValueError(
            f"model.name_or_path={job.model.name_or_path} is an encoder-decoder base, and TRL's trainers that sample "
            "have no path for those; take method=dpo on the same preferences, or a causal base"
        )
    given = type(job.adapter).__name__.lower()
    require(job.adapter.kind == "adapter", "adapter", given, "lora: the reference is the base without it")
    registry = Registry(job.registry_dir)
    if method.model_weight and method.reward_adapter is not None:
        resolve_ref(registry, "method.reward_adapter", method.reward_adapter, kind="reward", base=job.model)
    if method.judge_adapter is not None:
        resolve_ref(registry, "method.judge_adapter", method.judge_adapter, kind="reward", base=job.model)
    method.sampler.check()
    if method.pattern is not None:
        Pattern(method.pattern)
    if method.function is not None:
        load_function(method.function, job.allow_modules)


def check_rewards(job: TrainJob, prepared: Prepared) -> None:
    """Refuse prompts that lack what the method's rewards look at, and a function that fails on the first of them with
    its own answer. Raises InputError."""
    method: Any = job.method
    if not method.needs.sampling:
        return
    with input_errors():
        if method.exact_weight and all(isinstance(record, Prompt) for record in prepared.splits.train):
            raise ValueError(
                f"method.exact_weight={method.exact_weight}: no record of data.train has an answer to compare with; "
                "give output_text beside input_text, or another reward"
            )
        if method.function is not None:
            sequence, decode = prepared.examples.train[0]["completion"], prepared.tokens.tokenizer.decode
            start = sequence.labels.count(IGNORED)
            prompt_ids, answer_ids = sequence.input_ids[:start], sequence.input_ids[start:]
            prompt, answer = (decode(ids, skip_special_tokens=True) for ids in (prompt_ids, answer_ids))
            rollout = Rollout(prompt_ids, answer_ids, prompt, answer, answer, ended=True)
            scores(Weighed("function", 1.0, Function(method.function, job.allow_modules)), [rollout])


def check_sweep(job: SweepJob, planned: Plan) -> None:
    """Refuse a space with points that the base can't take, and a port that is taken, before anything runs. Raises
    InputError."""
    with input_errors():
        job.sweep.search.param_space(planned)
        reason = job.sweep.backend.why_not(job.trial_config(), planned)
        require(reason is None, "sweep/backend", type(job.sweep.backend).__name__, f"auto or ray_train ({reason})")
        for size in planned.candidates("tuning.adapter_size"):
            job.adapter.check(size, job.model.facts)
        for batch_size in planned.candidates("tuning.batch_size"):
            split_batch(dataclasses.replace(job.tuning, batch_size=batch_size), job.scaling.num_workers)
        if job.serve.deploy:
            require(job.kind != "reward", "serve.deploy", True, "false with a method whose result scores answers")
            job.serve.check_port()
