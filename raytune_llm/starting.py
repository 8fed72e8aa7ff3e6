"""From a composed job to one that may run: its input is sound and its Ray session is up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from raytune_llm import cluster
from raytune_llm.annotating import annotated
from raytune_llm.job import InputError, TrainJob, input_errors, require

if TYPE_CHECKING:
    from raytune_llm.preparation import Prepared
    from raytune_llm.version import Version

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
        from raytune_llm import stages
        from raytune_llm.preparation import check_knobs, check_rewards, prepare

        check()
        check_knobs(job)
        with input_errors():
            stages.check(job, read.train)
        found = prepare(job, read)
        check_rewards(job, found)
        for stage, own in given:
            prepare(stages.stage_job(job, stage), own)
        return found

    if job.teacher.is_present:
        job = annotated(job, check)
    with input_errors():
        read = load(job.data, job.method.records, job.seed)
        given = [
            (stage, load(stage.records_of(job.data), stage.method.records, job.seed))
            for stage in job.method.needs.stages
            if stage.data is not None
        ]
    found = beside_ray(prepared)
    print(found.diagnosis.text(), flush=True)
    with input_errors():
        use_gpu = cluster.uses_gpu(job.scaling.use_gpu)
        wanting = None if use_gpu else job.method.needs.gpu_for
        require(wanting is None, "scaling.use_gpu", job.scaling.use_gpu, f"a cluster with a GPU, for {wanting}")
    return Started(job, found, use_gpu, sys.stderr.isatty())


def beside_ray(prepared: Callable[[], Prepared]) -> Prepared:
    """What it returns, computed while Ray starts; of input that can't be used no session is left."""
    with ThreadPoolExecutor(1) as beside:
        preparing = beside.submit(prepared)
        cluster.connect()
        try:
            return preparing.result()
        except InputError:
            cluster.end_own_session()
            raise
