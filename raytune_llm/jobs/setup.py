"""From a composed job to one that may run: its input is sound and its Ray session is up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from raytune_llm import cluster
from raytune_llm.cluster import gc_paused
from raytune_llm.errors import InputError, input_errors
from raytune_llm.jobs.annotate import annotated
from raytune_llm.jobs.schema import CheckJob, TrainJob

if TYPE_CHECKING:
    from raytune_llm.data.files import Splits
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.methods.base import Needs
    from raytune_llm.stores.card import Version

J = TypeVar("J", bound=TrainJob)


@dataclass(frozen=True)
class Started(Generic[J]):
    """A job whose input is sound and whose Ray session is up."""

    job: J
    """With what came of its earlier stages."""
    prepared: Prepared
    use_gpu: bool
    interactive: bool
    earlier: tuple[Version, ...] = ()
    """What its earlier stages made."""


def start(job: J, check: Callable[[], None] = lambda: None) -> Started[J]:
    """Check everything that can be checked, `check` too: records before Ray starts, the rest beside it. Raises
    InputError."""
    from raytune_llm.data.files import load

    def prepared() -> Prepared:
        from raytune_llm.jobs import stage_jobs
        from raytune_llm.jobs.prepare import check_knobs, prepare

        check()
        check_knobs(job)
        with input_errors():
            stage_jobs.check(job, read.train)
        found = prepare(job, read)
        for own, records in given:
            prepare(own, records)
        return found

    if job.teacher.is_present:
        job = annotated(job, check)
    with input_errors():
        read = load(job.data, job.method.records, job.seed)
        given = read_given(job)
    found = beside_ray(prepared, dashboard=job.drives_ray_train)
    print(found.diagnosis.text(), flush=True)
    with input_errors():
        use_gpu = cluster.uses_gpu(job.scaling.use_gpu)
        check_gpu(job.method.needs, use_gpu)
    return Started(job, found, use_gpu, sys.stderr.isatty())


def read_given(job: CheckJob) -> list[tuple[CheckJob, Splits]]:
    """What is to be checked of each stage that has records of its own, and these. Raises ValueError."""
    from raytune_llm.data.files import load

    found = []
    for stage in job.method.needs.stages:
        if stage.data is not None:
            data = stage.records_of(job.data)
            own = CheckJob(home=job.home, seed=job.seed, model=job.model, data=data, method=stage.method)
            found.append((own, load(data, stage.method.records, job.seed, train_key=stage.data_key or "data.train")))
    return found


def check_gpu(needs: Needs, use_gpu: bool) -> None:
    """Refuse a setting that needs a GPU where there is none. Raises ValueError."""
    if needs.gpu_for is not None and not use_gpu:
        raise ValueError(f"{needs.gpu_for} needs a GPU, and this job has none; take another, or a cluster with GPUs")


def beside_ray(prepared: Callable[[], Prepared], *, dashboard: bool) -> Prepared:
    """What it returns, computed while Ray starts; of input that can't be used no session is left."""
    with gc_paused(), ThreadPoolExecutor(1) as beside:
        preparing = beside.submit(prepared)
        cluster.connect(dashboard=dashboard)
        try:
            return preparing.result()
        except InputError:
            cluster.end_own_session()
            raise
