"""A real base to train on in tests, with records: of the public data where they are, else the embedded demo's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worlds import precomputed, spec_of

from raytune_llm.data.demo import path as demo_path
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.jobs.config import load
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit

SETS = {
    "labels": ("isarcasm_cls", "sarcasm"),
    "preferences": ("isarcasm_pref", "preference"),
    "rationales": ("cqa_dss", "rationale"),
    "chats": ("sgd_chat", "chat"),
}
"""By kind, a set of the public data and one of the embedded demo's."""
SETTINGS = (
    "data.max_tokens=192",
    "tuning.batch_size=8",
    "tuning.warmup_steps=0",
    "tuning.eval_every=100",
    "tuning.early_stopping.patience=null",
    "evaluation.batch_size=8",
)


class Log:
    """A tracker's run that keeps nothing."""

    def log(self, step, metrics): ...

    def finish(self, summary, failed): ...


def files_of(kind: str, folder: Path, *, train: int = 64, eval: int = 24) -> list[str]:
    """Overrides that name the first short records of a kind, in files below a folder."""
    public, embedded = SETS[kind]
    root = os.environ.get("RAYTUNE_LLM_PUBLIC_DATA")
    source = demo_path(f"data/{embedded}") if root is None else Path(root, "data", public)
    overrides = []
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("eval", eval)):
        lines = (source / f"{split}.jsonl").read_text().splitlines()
        short = [line for line in lines if len(line) < 700]
        file = folder / f"{kind}-{split}.jsonl"
        file.write_text("\n".join(short[:count]) + "\n")
        overrides.append(f"data.{split}={file}")
    return overrides


def job_of(base: Path, home: Path, data: list[str], *overrides: str) -> TrainJob:
    """A training job on the real base."""
    return load("train", [f"model.name_or_path={base}", f"home={home}", *data, *SETTINGS, *overrides])


@dataclass(frozen=True)
class Trained:
    """A finished trial."""

    before: dict[str, float]
    """What the base has on the eval records."""
    after: dict[str, float]
    """What its best step has."""
    folder: Path
    """Its adapter."""


def trained(job: TrainJob, folder: Path, *, packed: bool = False, base: bool = True) -> Trained:
    """Run the job's one trial here: by its trainer, or in a pack; with `base`, evaluate the base, too."""
    examples = precomputed(job).examples
    after: dict[str, Any] = {}
    if packed:
        spec = spec_of(job)
        pack = PackedTrials(
            spec.config, examples, wanted=1, max_lora_rank=job.tuning.adapter_size, device="cpu", log=lambda _: None
        )
        pack.join(spec, Log())
        while not after:
            for pending in pack.advance():
                pending.store()
                after = pending.report.metrics
        pack.close()
        (checkpoint,) = Path(spec.directory).glob("checkpoint_*")
    else:
        place, options = WorkerContext(folder, 0, 1, False), {"progress": lambda *_: None, "resume": None}
        fit(spec_of(job), examples, place, report=lambda metrics, _: after.update(metrics), run=Log(), **options)
        checkpoint = folder / "checkpoint"
    return Trained(base_metrics(job, examples.eval) if base else {}, after, checkpoint / "best")


def base_metrics(job: TrainJob, examples: list[Any]) -> dict[str, float]:
    """The metrics of the base by the method's terms; of no meaning where its loss isn't one of an example alone."""
    model = job.model.load(score=job.method.needs.score)
    tokenizer = job.model.tokenizer()
    return evaluate(model, examples, job.method.terms, pad_id=tokenizer.pad_token_id, batch_size=8).metrics()
