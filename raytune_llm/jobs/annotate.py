"""A teacher's annotation of a job's records: a job of its own, or the first stage of a tuning job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from raytune_llm import cluster
from raytune_llm.errors import require
from raytune_llm.jobs.schema import AnnotateJob, TrainJob

if TYPE_CHECKING:
    from raytune_llm.annotation.report import AnnotationReport

J = TypeVar("J", bound=TrainJob)


def run_annotation(job: AnnotateJob | TrainJob, output: str) -> AnnotationReport:
    """Annotate the job's training records. Raises InputError."""
    from raytune_llm.annotation.run import annotate as annotate_records

    workers = job.teacher.workers
    train = job.data.train
    require(train is not None, "data.train", train, "a location of records to annotate")
    cluster.connect()
    bundles = [{"CPU": workers.cpus_per_worker, "GPU": 1}] * workers.num_workers
    use_gpu = cluster.uses_gpu(workers.use_gpu, key="teacher.workers.use_gpu", bundles=bundles)
    assert train is not None
    return annotate_records(
        train,
        output,
        teacher=job.teacher,
        prompt=job.prompt,
        annotation=job.annotation,
        home=job.home,
        seed=job.seed,
        use_gpu=use_gpu,
    )


def annotated(job: J, check: Callable[[], None] = lambda: None) -> J:
    """The job on its annotated records. Raises InputError, where possible before the teacher is called and paid for."""
    from raytune_llm.data.files import load
    from raytune_llm.jobs.prepare import check_knobs

    weighted = sum(source.weight != 1 for source in job.data.sources("train"))
    require(not weighted, "data.train", job.data.train, "no weights with a teacher: what it annotates becomes one file")
    check()
    check_knobs(job)
    if job.data.eval or job.data.test:
        load(job.data.with_train(None), job.method.records, job.seed)
    output = f"{job.run_dir}/annotated.jsonl"
    print(run_annotation(job, output).text(), flush=True)
    return replace(job, data=job.data.with_train(output))
