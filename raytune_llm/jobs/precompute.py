"""What frozen models say of a job's examples, computed once before training where its method needs it.

Runs as one Ray task on the accelerator; every trial shares what comes back, which travels with the examples.
"""

from __future__ import annotations

from typing import Any

import ray

from raytune_llm.data.examples import Examples
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.methods.model_refs import load_reference, resolve_teacher
from raytune_llm.models.frozen import with_features, with_group_members, with_references, with_teacher_top_k
from raytune_llm.models.loading import load_system


def precompute(job: TrainJob, examples: Examples, *, use_gpu: bool) -> Examples:
    """The examples with all that `job.method.needs` names, computed here."""
    needs, tokenizer = job.method.needs, job.model.tokenizer()
    common = {"pad_id": tokenizer.pad_token_id, "batch_size": job.evaluation.batch_size}
    parts = [examples.train, examples.eval]
    if needs.reference:
        model: Any = load_reference(job.model, job.method, job.registry_dir, use_gpu=use_gpu)
        parts = [with_references(model, part, **common) for part in parts]
    if needs.precomputes_teacher:
        model = load_system(*resolve_teacher(needs.teacher, job.model, job.registry_dir), use_gpu=use_gpu)
        if needs.teacher_top_k:
            size = {"num_candidates": needs.teacher_top_k, "vocabulary": len(tokenizer)}
            parts = [with_teacher_top_k(model, part, **size, **common) for part in parts]
        if needs.teacher_layers:
            parts = [with_features(model, part, layers=needs.teacher_layers, **common) for part in parts]
    if needs.group_size > 1:
        parts = [with_group_members(part, needs.group_size - 1, job.seed) for part in parts]
    return Examples(*parts)


def precompute_on_cluster(job: TrainJob, examples: Examples, *, use_gpu: bool) -> Examples:
    """The same in a Ray task; the examples as they are when the method needs nothing."""
    needs = job.method.needs
    if not needs.reference and not needs.precomputes_teacher:
        return examples
    what = "the reference policy's log-probabilities" if needs.reference else "what the teacher says"
    print(f"computing {what} …", flush=True)
    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(precompute)
    job = job.of_trials() if isinstance(job, SweepJob) else job
    return ray.get(task.remote(job, examples, use_gpu=use_gpu))
