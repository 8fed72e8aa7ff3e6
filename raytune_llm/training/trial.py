"""One trial in one process (or one of its data-parallel workers): model, adapter, trainer, evaluation, checkpoint.

Free of Ray: each report is passed to a callable, so the same trial runs in a Ray Train worker, in a Ray Tune trial and
in a test. A checkpoint's state/ holds weights, optimizer, schedule and random streams, by the trainer; the rest is
reporting.py's.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from raytune_llm.compat import score_labels_only
from raytune_llm.data.examples import Example, Examples
from raytune_llm.data.mixture import epoch_indices
from raytune_llm.data.order import first_indices
from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.loss import Scores, Terms, evaluate
from raytune_llm.evaluation.metric_file import write_metric
from raytune_llm.evaluation.metrics import Metric, wholes
from raytune_llm.evaluation.terms import LOSS
from raytune_llm.methods import model_refs
from raytune_llm.methods.base import Session, TrainerInputs
from raytune_llm.methods.common.drift import drift_terms
from raytune_llm.models.loading import load_trainable
from raytune_llm.models.out_of_memory import free_cached_memory
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.fits import check_fits
from raytune_llm.training.reporting import LiveTrial
from raytune_llm.training.tracking.base import Run
from raytune_llm.training.trainer_arguments import training_arguments

Reporter = Callable[[dict[str, Any], Path], None]
"""Takes the metrics of a report and the local folder of its checkpoint, which it must copy before it returns."""
Progress = Callable[[int, dict[str, float]], None]
"""Called with each step done, and with metrics where there are new ones."""


@dataclass(frozen=True)
class WorkerContext:
    """Where a trial runs."""

    folder: Path
    """Local scratch folder, empty or this trial's own."""
    rank: int
    world_size: int
    use_gpu: bool

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return "cuda" if self.use_gpu else "cpu"


def fit(
    spec: TrialSpec,
    examples: Examples,
    place: WorkerContext,
    *,
    report: Reporter,
    run: Run,
    progress: Progress,
    resume: Path | None,
) -> str:
    """Train one trial to its end and return why it ended. `resume`: a checkpoint's folder to continue from."""
    from transformers import PrinterCallback, set_seed

    score_labels_only()
    config = spec.config
    set_seed(config.seed)
    with (
        model_refs.open_session(
            config.method,
            config.model,
            registry_dir=config.registry_dir,
            allow_modules=config.allow_modules,
            batch_size=config.eval_batch_size,
            seed=config.seed,
            use_gpu=place.use_gpu,
        ) as session,
        model_refs.teacher_model(
            config.method.needs, config.model, config.registry_dir, device=place.device
        ) as teacher,
    ):
        num_gpus = place.world_size * config.scaling.worker_resources(use_gpu=place.use_gpu).get("GPU", 0)
        trial = LiveTrial(spec, run, place.folder / "checkpoint", num_gpus=num_gpus, resume=resume)
        evaluator = Evaluator(trial, examples, place, report, progress, session)
        trainer = (session or config.method).trainer(trainer_inputs(config, examples, place, evaluator, teacher))
        trainer.remove_callback(PrinterCallback)
        evaluator.trainer = trainer
        trainer.train(resume_from_checkpoint=str(resume / "state") if resume else None)
        return trial.ended or "complete"


def trainer_inputs(
    config: TrialConfig, examples: Examples, place: WorkerContext, evaluator: Evaluator, teacher: Any
) -> TrainerInputs:
    """What the trainer of a trial is made from."""
    data, tuning = config.data, config.tuning
    epoch = epoch_indices(
        len(examples.train),
        subset=data.subset,
        weights=[*data.weights.values()],
        sources=examples.sources,
        seed=config.seed,
    )
    return TrainerInputs(
        model=start_model(config, place.device),
        examples=examples.train,
        indices=first_indices(epoch, config.seed, tuning.steps * tuning.batch_size),
        tokenizer=config.model.tokenizer(),
        arguments=training_arguments(
            config, str(place.folder / "trainer"), num_workers=place.world_size, use_gpu=place.use_gpu
        ),
        callbacks=[evaluator],
        teacher=teacher,
    )


def start_model(config: TrialConfig, device: str = "cpu") -> Any:
    """What is trained, on a device, cpu or cuda: a new adapter on the base (or all of it), or the adapter that the
    method starts from."""
    free_cached_memory()  # of the trial that this process ran before
    check_fits(config, lora_rank=config.tuning.adapter_size, device=device)
    own_dropout, score = config.adapter.trains_base, config.method.needs.score
    base = config.model.load(own_dropout=own_dropout, score=score, device=device)
    with model_refs.initial_adapter(config.method, config.registry_dir) as folder:
        if folder is not None:
            return load_trainable(folder, base)
    return config.adapter.apply(base, lora_rank=config.tuning.adapter_size, seed=config.seed)


class Evaluator(TrainerCallback):
    """At every evaluation: eval metrics over all workers, the report and its checkpoint, early stopping."""

    trainer: Any

    def __init__(
        self,
        trial: LiveTrial,
        examples: Examples,
        place: WorkerContext,
        report: Reporter,
        progress: Progress,
        session: Session | None,
    ):
        self.trial, self.eval_examples, self.guard, self.place = trial, examples.eval, examples.guard, place
        self.report, self.progress, self.session = report, progress, session
        self.started = time.monotonic() - trial.history.seconds

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress(state.global_step, {})
        if self.trial.is_due(state.global_step):
            control.should_log = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        self.trial.add_loss(logs["loss"])
        sampled = () if self.session is None else self.session.train_metrics
        names = ("loss", "learning_rate", "grad_norm", *(name for name in sampled if name in logs))
        self.trial.log_step(state.global_step, {name: logs[name] for name in names})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **inputs: Any) -> None:
        step = state.global_step
        measured = self.evaluate(inputs["model"])
        metrics = wholes(measured)
        report = self.trial.report(
            step,
            metrics,
            seconds=time.monotonic() - self.started,
            saver=TrainerSaver(self.trainer, step) if self.place.rank == 0 else None,
            stopped=self.session.why_stop(metrics) if self.session is not None else None,
        )
        if self.trial.ended is not None:
            control.should_training_stop = True
        self.progress(step, report.metrics)
        best_step = self.trial.history.best.step
        if best_step == step and self.place.rank == 0 and self.trial.config.keeps_records:
            write_metric(self.trial.spec.directory, measured[self.trial.config.method.metric])
        assert self.trial.folder is not None
        self.report({"step": step, "best_step": best_step, **report.metrics}, self.trial.folder)

    def evaluate(self, model: Any) -> dict[str, Metric]:
        """Eval metrics, summed over all workers, each of which takes its share of the eval set; of a policy, each
        measures it on the same prompts and draws."""
        if self.session is not None:
            measured = self.session.measure(model, self.eval_examples[: self.session.eval_prompts]).metrics
            return measured | self.drift(model)
        metrics = self.score(model, self.eval_examples, self.trial.config.method.terms).resamplable()
        is_finite = LOSS not in metrics or math.isfinite(metrics[LOSS].whole())
        return metrics | self.drift(model) | self.answer(model, is_finite=is_finite)

    def score(self, model: Any, examples: Sequence[Example], terms: Terms) -> Scores:
        """Terms of examples over all workers."""
        with self.trainer.accelerator.autocast():
            return evaluate(
                model,
                examples,
                terms,
                pad_id=self.trainer.processing_class.pad_token_id,
                batch_size=4 * self.trainer.args.per_device_train_batch_size,
                rank=self.place.rank,
                world_size=self.place.world_size,
            )

    def drift(self, model: Any) -> dict[str, Metric]:
        """How far the model is from its base on general prompts, where that is measured."""
        if not self.guard:
            return {}
        started = time.monotonic()
        metrics = self.score(model, self.guard, drift_terms).resamplable()
        self.trial.drift_seconds += time.monotonic() - started
        return metrics

    def answer(self, model: Any, *, is_finite: bool) -> dict[str, Metric]:
        """Metrics of greedy answers, where trials are chosen by them; each worker answers its share. NaN from a model
        whose loss isn't finite."""
        answering = self.trial.config.answering
        if answering is None:
            return {}
        if not is_finite:
            return answering.undefined()
        started, world_size = time.monotonic(), self.place.world_size
        with self.trainer.accelerator.autocast():
            outputs = generate(
                self.trainer.accelerator.unwrap_model(model),
                self.trainer.processing_class,
                answering.prompts[self.place.rank :: world_size],
                max_new_tokens=answering.max_new_tokens,
                stop_ids=answering.stop_ids,
                batch_size=self.trial.config.eval_batch_size,
            )
        metrics = answering.metrics(outputs if world_size == 1 else gathered(outputs, world_size))
        self.trial.answer_seconds += time.monotonic() - started
        return metrics


def gathered(texts: list[str], world_size: int) -> list[str]:
    """The texts of all workers, of which each has every world_size-th, in order; on every worker."""
    shares: list[list[str]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, texts)
    return [text for row in itertools.zip_longest(*shares) for text in row if text is not None]


@dataclass(frozen=True)
class TrainerSaver:
    """A trial in transformers' trainer, which has just saved itself at this step."""

    trainer: Any
    step: int

    def save_state(self, folder: Path) -> None:
        Path(self.trainer.args.output_dir, f"checkpoint-{self.step}").rename(folder)

    def save_weights(self, folder: Path) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        # TRL keeps the reference as a second adapter, which isn't what was learned.
        own = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(folder, **own)
