"""What frozen models add to a job's encoded records, computed once where its method needs it.

Reference log-probabilities and a teacher's likeliest tokens are read by training and by the comparison after it;
a teacher's hidden states and group members only by training. All trials share the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from raytune_llm import cluster
from raytune_llm.data.encoding.encode import EncodedSplit, EncodedSplits
from raytune_llm.data.examples import Example, Examples
from raytune_llm.data.groups import with_group_members
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.methods.base import Method
from raytune_llm.methods.model_refs import load_reference, resolve_teacher
from raytune_llm.models.base import Base
from raytune_llm.models.frozen import with_features, with_references, with_teacher_top_k
from raytune_llm.models.loading import load_model


@dataclass(frozen=True)
class FrozenModels:
    """The models that a method reads but doesn't train, each loaded when first used."""

    base: Base
    method: Method
    registry_dir: str
    batch_size: int
    """Sequences that they read at once."""
    use_gpu: bool

    @classmethod
    def of(cls, job: TrainJob, *, use_gpu: bool) -> FrozenModels:
        return cls(job.model, job.method, job.registry_dir, job.evaluation.batch_size, use_gpu)

    @cached_property
    def tokenizer(self) -> Any:
        return self.base.tokenizer()

    @cached_property
    def reference(self) -> Any:
        """The model that training begins with."""
        return load_reference(self.base, self.method, self.registry_dir, use_gpu=self.use_gpu)

    @cached_property
    def teacher(self) -> Any:
        """The model that the student learns from."""
        location = resolve_teacher(self.method.needs.teacher, self.base, self.registry_dir)
        return load_model(*location, use_gpu=self.use_gpu)

    def read(self, split: EncodedSplit) -> EncodedSplit:
        """The split with the log-probabilities that losses read, where the method needs them: the reference's, and
        those of the teacher's likeliest tokens."""
        return split.with_examples(self.with_logprobs(split.examples))

    def with_logprobs(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The same for examples without records."""
        needs = self.method.needs
        if needs.reference and examples:
            examples = with_references(self.reference, examples, **self._reading())
        if needs.teacher_top_k and examples:
            size = {"top_k": needs.teacher_top_k, "vocabulary": len(self.tokenizer)}
            examples = with_teacher_top_k(self.teacher, examples, **size, **self._reading())
        return examples

    def with_features(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples with the teacher's hidden states, where the method needs them."""
        layers = self.method.needs.teacher_layers
        if not layers or not examples:
            return examples
        return with_features(self.teacher, examples, layers=layers, **self._reading())

    def _reading(self) -> dict[str, Any]:
        return {"pad_id": self.tokenizer.pad_token_id, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Precomputed:
    """A job's records with all that their method needs of frozen models."""

    encoded: EncodedSplits
    """For the comparison; where frozen models ran, `test` has only the records that will be compared."""
    examples: Examples
    """For trials: of train and eval, also with hidden states and group members."""


def precompute(models: FrozenModels, encoded: EncodedSplits, *, max_examples: int | None, seed: int) -> Precomputed:
    """Run the frozen models, in this process, once over each record. Of `test`, at most max_examples records are drawn
    for the comparison."""
    encoded = replace(
        encoded,
        train=models.read(encoded.train),
        eval=models.read(encoded.eval),
        test=models.read(encoded.test.drawn(max_examples, seed)),
    )
    num_members = models.method.needs.group_size - 1
    parts = (models.with_features(split.examples) for split in (encoded.train, encoded.eval))
    train, evaluation = (with_group_members(part, num_members, seed) if num_members > 0 else part for part in parts)
    return Precomputed(encoded, Examples(train, evaluation))


def precompute_on_cluster(job: TrainJob, encoded: EncodedSplits, *, use_gpu: bool) -> Precomputed:
    """The same for a job, in a Ray task, which gets the examples alone; the records as they are where the method needs
    no frozen model."""
    needs = job.method.needs
    if not needs.reference and not needs.precomputes_teacher:
        return Precomputed(encoded, Examples(encoded.train.examples, encoded.eval.examples))
    outputs = "the reference policy's log-probabilities" if needs.reference else "the teacher's outputs"
    print(f"computing {outputs} …", flush=True)
    kept = replace(encoded, test=encoded.test.drawn(job.evaluation.max_examples, job.seed))
    found = cluster.as_task(precompute, use_gpu=use_gpu)(
        FrozenModels.of(job, use_gpu=use_gpu), kept.without_records(), max_examples=None, seed=job.seed
    )
    return replace(found, encoded=found.encoded.with_records(kept))
