"""What frozen models say of a job's examples, computed once before training where its method needs it.

Runs as one Ray task on the accelerator; every trial shares what comes back, which travels with the examples.
"""

from __future__ import annotations

from typing import Any

import ray

from raytune_llm.data.examples import Examples
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.methods.model_refs import load_reference, resolve_teacher
from raytune_llm.models.frozen import with_features, with_group_members, with_references, with_teacher_top_k
from raytune_llm.models.loading import load_system
from raytune_llm.training.config import TrialConfig


def precompute(config: TrialConfig, examples: Examples, *, use_gpu: bool) -> Examples:
    """The examples with all that `config.method.needs` names, computed here."""
    needs, tokenizer = config.method.needs, config.model.tokenizer()
    common = {"pad_id": tokenizer.pad_token_id, "batch_size": config.eval_batch_size}
    parts = [examples.train, examples.eval]
    if needs.reference:
        model: Any = load_reference(config.model, config.method, config.registry_dir, use_gpu=use_gpu)
        parts = [with_references(model, part, **common) for part in parts]
    if needs.asks_teacher:
        model = load_system(*resolve_teacher(needs.teacher, config.model, config.registry_dir), use_gpu=use_gpu)
        if needs.num_candidates:
            size = {"num_candidates": needs.num_candidates, "vocabulary": len(tokenizer)}
            parts = [with_teacher_top_k(model, part, **size, **common) for part in parts]
        if needs.teacher_layers:
            parts = [with_features(model, part, layers=needs.teacher_layers, **common) for part in parts]
    if needs.mates:
        parts = [with_group_members(part, needs.mates, config.seed) for part in parts]
    return Examples(*parts)


def precompute_on_cluster(job: TrainJob, examples: Examples, *, use_gpu: bool) -> Examples:
    """The same in a Ray task; the examples as they are when the method needs nothing."""
    needs = job.method.needs
    if not needs.reference and not needs.asks_teacher:
        return examples
    what = "the reference policy's log-probabilities" if needs.reference else "what the teacher says"
    print(f"computing {what} …", flush=True)
    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(precompute)
    return ray.get(task.remote(job.trial_config(), examples, use_gpu=use_gpu))
