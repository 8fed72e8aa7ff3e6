"""One trial in one process (or one of its data-parallel workers): model, adapter, trainer, evaluation, checkpoint.

Free of Ray: what is to be reported is handed to a callable, so the same trial runs in a Ray Train worker, in a Ray
Tune trial and in a test. A checkpoint holds all that must survive: state/ (weights, optimizer, schedule, random
streams, by the trainer), best/ (the adapter or model of the best step so far) and history.json (all reports).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from raytune_llm.data.examples import Example, Examples
from raytune_llm.data.order import first_indices
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.methods import model_refs
from raytune_llm.methods.base import Session, TrainerInputs
from raytune_llm.models.loading import load_trainable
from raytune_llm.training.config import Tuning
from raytune_llm.training.history import History
from raytune_llm.training.tracking.base import Run

Reporter = Callable[[dict[str, Any], Path], None]
"""Takes the metrics of a report and the local folder of its checkpoint, which it must copy before it returns."""
Progress = Callable[[int, dict[str, float]], None]
"""Told the step after each one, with metrics where there are new ones."""


ROLLOUTS = ("reward", "kl", "completions/mean_length")
"""What TRL says of the completions that a policy is trained on."""


@dataclass(frozen=True)
class WorkerContext:
    """Where a trial runs."""

    folder: Path
    """Local scratch folder, empty or this trial's own."""
    rank: int
    world_size: int
    use_gpu: bool


def split_batch(tuning: Tuning, num_workers: int) -> tuple[int, int]:
    """(examples per forward pass of a worker, forward passes per step). Raises ValueError when the batch can't be
    divided."""
    if tuning.batch_size % num_workers:
        raise ValueError(
            f"tuning.batch_size={tuning.batch_size} can't be divided among scaling.num_workers={num_workers}; "
            "make it a multiple"
        )
    share = tuning.batch_size // num_workers
    micro = tuning.micro_batch_size or share
    if share % micro:
        raise ValueError(
            f"tuning.micro_batch_size={micro} doesn't divide each worker's {share} examples; choose a divisor"
        )
    return micro, share // micro


def fit(
    job: TrainJob,
    examples: Examples,
    place: WorkerContext,
    *,
    milestones: Iterable[int],
    report: Reporter,
    run: Run,
    progress: Progress,
    resume: Path | None,
) -> str:
    """Train one trial to its end and return why it ended. `resume` is a checkpoint's folder to go on from."""
    from transformers import PrinterCallback, set_seed

    set_seed(job.seed)
    with (
        model_refs.open_session(
            job.method,
            job.model,
            registry_dir=job.registry_dir,
            allow_modules=job.allow_modules,
            batch_size=job.evaluation.batch_size,
            seed=job.seed,
            use_gpu=place.use_gpu,
        ) as session,
        model_refs.teacher_model(job.method.needs, job.model, job.registry_dir) as teacher,
    ):
        evaluator = Evaluator(job, examples.eval, place, set(milestones), report, run, progress, resume, session)
        trainer = (session or job.method).trainer(
            TrainerInputs(
                model=start_model(job),
                examples=examples.train,
                indices=first_indices(len(examples.train), job.seed, job.tuning.steps * job.tuning.batch_size),
                tokenizer=job.model.tokenizer(),
                arguments=training_arguments(job, place),
                callbacks=[evaluator],
                teacher=teacher,
            )
        )
        trainer.remove_callback(PrinterCallback)
        evaluator.trainer = trainer
        trainer.train(resume_from_checkpoint=str(resume / "state") if resume else None)
        return evaluator.ended


def start_model(job: TrainJob) -> Any:
    """What is trained: a new adapter on the base (or all of it), or the adapter that the method goes on in."""
    base = job.model.load(own_dropout=job.adapter.trains_base, score=job.method.needs.score)
    with model_refs.initial_adapter(job.method, job.registry_dir) as folder:
        if folder is not None:
            return load_trainable(folder, base)
    return job.adapter.apply(base, rank=job.tuning.adapter_size, seed=job.seed)


def training_arguments(job: TrainJob, place: WorkerContext) -> dict[str, Any]:
    """The TrainingArguments that a trial's knobs mean; evaluation and checkpoints are the Evaluator's."""
    import torch

    micro, accumulation = split_batch(job.tuning, place.world_size)
    schedules = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    return {
        "output_dir": str(place.folder / "trainer"),
        "max_steps": job.tuning.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": schedules[job.tuning.schedule.value],
        "warmup_steps": job.tuning.warmup_steps,
        "weight_decay": job.tuning.weight_decay,
        "max_grad_norm": job.tuning.max_grad_norm,
        "optim": "adamw_torch",
        "seed": job.seed,
        "data_seed": job.seed,
        "train_sampling_strategy": "sequential",
        "bf16": place.use_gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not place.use_gpu,
        "activation_checkpointing": job.scaling.gradient_checkpointing,
        "logging_steps": max(1, min(10, job.tuning.eval_every)),
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": place.use_gpu,
        "ddp_find_unused_parameters": False,
    }


class Evaluator(TrainerCallback):
    """At every evaluation: eval metrics over all workers, early stopping, best weights, checkpoint, report."""

    trainer: Any

    def __init__(
        self,
        job: TrainJob,
        eval_examples: list[Example],
        place: WorkerContext,
        milestones: set[int],
        report: Reporter,
        run: Run,
        progress: Progress,
        resume: Path | None,
        session: Session | None,
    ):
        self.session = session
        self.job, self.eval_examples, self.place, self.milestones = job, eval_examples, place, milestones
        self.report, self.run, self.progress = report, run, progress
        self.checkpoint = place.folder / "checkpoint"
        self.history = History(metric=job.method.metric)
        if resume is not None:
            self.history = History.load(resume)
            shutil.copytree(resume / "best", self.checkpoint / "best", dirs_exist_ok=True)
        self.started = time.monotonic() - self.history.seconds
        self.train_losses: list[float] = []
        self.ended = "complete"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, tuning = state.global_step, self.job.tuning
        self.progress(step, {})
        if step % tuning.eval_every == 0 or step in self.milestones or step == tuning.steps:
            control.should_log = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        self.train_losses.append(logs["loss"])
        self.run.log(
            state.global_step,
            {
                "train/loss": logs["loss"],
                "train/learning_rate": logs["learning_rate"],
                "train/grad_norm": logs["grad_norm"],
                **{f"train/{name}": logs[name] for name in ROLLOUTS if self.session is not None and name in logs},
            },
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **_: Any
    ) -> None:
        step = state.global_step
        metrics = self.evaluate(model) | {
            "train/loss": sum(self.train_losses) / max(1, len(self.train_losses)),
            **self.cost(),
        }
        self.train_losses.clear()
        stopped = self.session.why_stop(metrics) if self.session is not None else None
        report = self.history.add(step, metrics, stopped=stopped)
        self.history.seconds = metrics["time/seconds"]
        why = self.history.why_stop(self.job.tuning.early_stopping)
        if why is not None:
            control.should_training_stop, self.ended = True, why
        if self.place.rank == 0:
            self.write_checkpoint(step, Path(args.output_dir) / f"checkpoint-{step}")
        self.progress(step, report.metrics)
        self.run.log(step, report.metrics)
        self.report({"step": step, "best_step": self.history.best.step, **report.metrics}, self.checkpoint)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Eval metrics, summed over all workers, each of which takes its share of the eval set; of a policy, each
        measures it on the same prompts and draws."""
        if self.session is not None:
            measured = self.session.measure(model, self.eval_examples[: self.session.eval_prompts]).metrics
            return {name: metric.whole() for name, metric in measured.items()}
        with self.trainer.accelerator.autocast():
            scores = evaluate(
                model,
                self.eval_examples,
                self.job.method.terms,
                pad_id=self.trainer.processing_class.pad_token_id,
                batch_size=4 * self.trainer.args.per_device_train_batch_size,
                rank=self.place.rank,
                world_size=self.place.world_size,
            )
        return scores.metrics("eval")

    def cost(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        gpus = self.place.world_size if self.place.use_gpu else 0
        return {"time/seconds": seconds, "cost/gpu_hours": seconds * gpus / 3600}

    def write_checkpoint(self, step: int, saved: Path) -> None:
        """Bring the folder up to date: the trainer's own save becomes state/, a new best replaces best/."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.checkpoint / "state", ignore_errors=True)
        saved.rename(self.checkpoint / "state")
        if self.history.best.step == step:
            shutil.rmtree(self.checkpoint / "best", ignore_errors=True)
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            # TRL keeps the reference as a second adapter, which isn't what was learned.
            own = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
            model.save_pretrained(self.checkpoint / "best", **own)
        self.history.save(self.checkpoint)
