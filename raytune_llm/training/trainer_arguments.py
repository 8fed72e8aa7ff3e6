"""The arguments of a trial's trainer: those that the job's knobs mean, and those that the user passes on in
scaling.trainer, which are checked here."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from raytune_llm.errors import InputError, first_line
from raytune_llm.methods.base import TrainerConfig
from raytune_llm.training.config import TrialConfig, Tuning

KEYS = {
    "max_steps": "tuning.steps",
    "num_train_epochs": "tuning.steps",
    "per_device_train_batch_size": "tuning.batch_size and tuning.micro_batch_size",
    "gradient_accumulation_steps": "tuning.micro_batch_size",
    "learning_rate": "tuning.learning_rate_multiplier",
    "lr_scheduler_type": "tuning.schedule",
    "lr_scheduler_kwargs": "tuning.schedule",
    "warmup_steps": "tuning.warmup_steps",
    "weight_decay": "tuning.weight_decay",
    "max_grad_norm": "tuning.max_grad_norm",
    "eval_strategy": "tuning.eval_every",
    "eval_steps": "tuning.eval_every",
    "save_strategy": "tuning.eval_every",
    "save_steps": "tuning.eval_every",
    "seed": "seed",
    "data_seed": "seed",
    "max_length": "data.max_tokens",
    "metric_for_best_model": "method.metric",
    "greater_is_better": "method.metric",
    "load_best_model_at_end": "method.metric",
    "activation_checkpointing": "scaling.gradient_checkpointing",
    "gradient_checkpointing": "scaling.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "scaling.gradient_checkpointing",
    "use_cpu": "scaling.use_gpu",
    "report_to": "tracking",
    "run_name": "tracking",
    "output_dir": "home",
    "resume_from_checkpoint": "run",
}
"""Arguments that the job sets, with the key that decides them."""
ENCODED = "records are encoded once, before the trainer is made"
SHARDED = "evaluations and checkpoints need the whole model on each worker"
ORDERED = "a step takes tuning.batch_size examples in an order that every backend shares"
REASONS = {
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), SHARDED),
    **dict.fromkeys(("packing", "packing_strategy", "eval_packing"), f"{ORDERED}; padding_free takes them unpadded"),
    **dict.fromkeys(("train_sampling_strategy", "auto_find_batch_size", "shuffle_dataset"), ORDERED),
    **dict.fromkeys(("dataset_text_field", "dataset_num_proc", "chat_template_path", "eos_token"), ENCODED),
    **dict.fromkeys(("pad_token", "completion_only_loss", "assistant_only_loss", "dataset_kwargs"), ENCODED),
    **dict.fromkeys(("remove_unused_columns", "label_names", "label_smoothing_factor"), "the loss is the method's"),
    **dict.fromkeys(("logging_steps", "logging_strategy", "disable_tqdm"), "progress and metrics are the job's"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token"), "versions are published to the registry"),
}
"""Arguments that no trial can have, and why."""
OF_THE_DEVICE = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval")
"""Arguments whose values only a worker's device can judge."""


def split_batch(tuning: Tuning, num_workers: int) -> tuple[int, int]:
    """(examples per forward pass of a worker, forward passes per step). Raises InputError when the batch can't be
    divided."""
    if tuning.batch_size % num_workers:
        raise InputError(
            f"tuning.batch_size={tuning.batch_size} can't be divided among scaling.num_workers={num_workers}; "
            "make it a multiple"
        )
    share = tuning.batch_size // num_workers
    micro = tuning.micro_batch_size or share
    if share % micro:
        raise InputError(
            f"tuning.micro_batch_size={micro} doesn't divide each worker's {share} examples; choose a divisor"
        )
    return micro, share // micro


def training_arguments(config: TrialConfig, folder: str, *, num_workers: int, use_gpu: bool) -> dict[str, Any]:
    """The TrainingArguments that a trial's knobs mean, with those of scaling.trainer; evaluation and checkpoints are
    training/trial.py's. `folder`: where the trainer writes."""
    import torch

    micro, accumulation = split_batch(config.tuning, num_workers)
    schedules = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    return {
        "output_dir": folder,
        "max_steps": config.tuning.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": schedules[config.tuning.schedule.value],
        "warmup_steps": config.tuning.warmup_steps,
        "weight_decay": config.tuning.weight_decay,
        "max_grad_norm": config.tuning.max_grad_norm,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "train_sampling_strategy": "sequential",
        "bf16": torch.cuda.is_bf16_supported() if use_gpu else _autocasts_on_cpu(config),
        "use_cpu": not use_gpu,
        "activation_checkpointing": config.scaling.gradient_checkpointing,
        "logging_steps": max(1, min(10, config.tuning.eval_every)),
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": use_gpu,
        "ddp_find_unused_parameters": False,
        **config.scaling.trainer,
    }


def _autocasts_on_cpu(config: TrialConfig) -> bool:
    """Whether passes on a CPU round to bfloat16 what is trained in float32 (adapters, heads, all weights), as on a GPU:
    where the base is in it. A score head takes no hidden states of another dtype than its own."""
    import torch

    return config.model.torch_dtype("cpu") is torch.bfloat16


def check_passed_on(passed: Mapping[str, Any], config: TrainerConfig) -> None:
    """Refuse what can't be in scaling.trainer for a method's trainer. Raises InputError naming argument, value and
    remedy."""
    known = {field.name for field in dataclasses.fields(config.kind)}
    kind = config.kind.__name__
    for name, value in passed.items():
        where = f"scaling.trainer.{name}={value}"
        if name in KEYS:
            raise InputError(f"{where} is not allowed: the job sets it; use {KEYS[name]}")
        if name in REASONS:
            raise InputError(f"{where} is not allowed: {REASONS[name]}")
        if name in config.own:
            raise InputError(f"{where} is not allowed: the method sets it, by its own keys (method.…)")
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known - KEYS.keys() - REASONS.keys(), n=3)) or "none"
            raise InputError(f"{where}: {kind}, the config of this method's trainer, has no {name}; nearest: {near}")
    if passed.get("use_liger_kernel") and find_spec("liger_kernel") is None:
        raise InputError("scaling.trainer.use_liger_kernel=true needs Liger's kernels: pip install liger-kernel")
    _check_values({name: value for name, value in passed.items() if name not in OF_THE_DEVICE}, config)


def _check_values(passed: Mapping[str, Any], config: TrainerConfig) -> None:
    """Have the trainer's config judge the values, on the CPU. It sets environment variables, which Ray's workers would
    inherit."""
    if not passed:
        return
    before = set(os.environ)
    here: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.kind(output_dir=folder, **here, **passed)
        except (ValueError, TypeError, ImportError) as error:
            given = ", ".join(f"scaling.trainer.{name}={value}" for name, value in passed.items())
            raise InputError(f"{given} is not allowed: {first_line(error)}") from error
        finally:
            for name in set(os.environ) - before:
                del os.environ[name]
