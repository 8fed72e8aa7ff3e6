"""From a composed job to a started one: its input is sound and its Ray session is up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from raytune_llm import cluster, session
from raytune_llm.cluster import gc_paused
from raytune_llm.errors import InputError, require
from raytune_llm.jobs import slots
from raytune_llm.jobs.annotate import annotated
from raytune_llm.jobs.clock import Clock
from raytune_llm.jobs.data_report import write_data_report
from raytune_llm.jobs.schema import DataJob, TrainJob
from raytune_llm.sweep import status
from raytune_llm.training import terminal

if TYPE_CHECKING:
    from raytune_llm.data.files import Splits
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.methods.base import Needs
    from raytune_llm.stores.card import Version

J = TypeVar("J", bound=TrainJob)
T = TypeVar("T")


@dataclass(frozen=True)
class Started(Generic[J]):
    """A job whose input is sound and whose Ray session is up."""

    job: J
    """With the versions that its earlier stages published."""
    prepared: Prepared
    use_gpu: bool
    interactive: bool
    """Whether there is a terminal, on which its training is drawn as it proceeds."""
    clock: Clock
    of_stages: Mapping[str, Prepared]
    """The records of each earlier stage, by its name."""
    earlier: tuple[Version, ...] = ()
    """Published by its earlier stages."""


def start(job: J, check: Callable[[], None] = lambda: None, prepared: Prepared | None = None) -> Started[J]:
    """Check everything that can be checked, `check` too: records before Ray starts, the rest while it starts.
    `prepared`: the job's data, where they have been prepared already. Raises InputError."""
    from raytune_llm.data.files import load

    def prepare_all() -> tuple[Prepared, dict[str, Prepared]]:
        from raytune_llm.jobs import stage_jobs
        from raytune_llm.jobs.further import check_further
        from raytune_llm.jobs.prepare import check_knobs, check_method, prepare

        check()
        check_knobs(job)
        check_further(job.evaluation, job.method)
        stage_jobs.check(job, splits.train)
        if prepared is None:
            own = prepare(job, splits)
        else:
            own = prepared
            check_method(job, own.encoded, own.tokens, is_carved=own.splits.carved)
        return own, {name: prepare(stage_job, read) for name, (stage_job, read) in stage_data.items()}

    clock = Clock()
    if job.teacher.is_present:
        asks = "false with a teacher, whose answers cost: jobs/annotate.py has them written, then plan for its output"
        require(not job.plan, "plan", True, asks)
        job = annotated(job, check)
    splits = load(job.data, job.method.records, job.seed) if prepared is None else prepared.splits
    stage_data = read_stage_data(job, splits)
    found, of_stages = while_ray_starts(prepare_all, dashboard=job.drives_ray_train)
    print(found.diagnosis.text(), flush=True)
    if not job.plan:
        write_data_report(job, found.diagnosis, found.splits, f"{job.run_dir}/data")
    status.update(job_server=cluster.job_server())
    if not job.plan:
        slots.acquire(f"{job.name}/{job.run}")
    scaling = job.scaling
    bundles = [scaling.worker_resources(use_gpu=True)] * scaling.num_workers
    use_gpu = cluster.uses_gpu(scaling.use_gpu, bundles=bundles, wait_seconds=scaling.wait_seconds)
    check_gpu(job.method.needs, use_gpu)
    note = None if use_gpu else job.model.cpu_dtype_note()
    if note is not None:
        print(note, flush=True)
    clock.lap("start")
    return Started(job, found, use_gpu, terminal.is_live(), clock, of_stages)


def read_stage_data(job: DataJob, splits: Splits) -> dict[str, tuple[DataJob, Splits]]:
    """A job to check for each earlier stage, with its records, by the stage's name: records of its own, or the job's
    (`splits`), which its method encodes its own way. Raises InputError."""
    from raytune_llm.data.files import load
    from raytune_llm.jobs.stage_jobs import check_records

    check_records(job.method, splits.train)
    found = {}
    for stage in job.method.needs.stages:
        data = stage.records_of(job.data)
        own = DataJob(
            home=job.home,
            seed=job.seed,
            model=job.model,
            data=data,
            method=stage.method,
            evaluation=job.evaluation,
        )
        train_key = stage.data_key or "data.train"
        read = splits if stage.data is None else load(data, stage.method.records, job.seed, train_key=train_key)
        found[stage.name] = own, read
    return found


def check_gpu(needs: Needs, use_gpu: bool) -> None:
    """Raise InputError for a setting that needs a GPU where there is none."""
    if needs.gpu_for is not None and not use_gpu:
        raise InputError(f"{needs.gpu_for} needs a GPU, and this job has none; choose another, or a cluster with GPUs")


def while_ray_starts(prepare: Callable[[], T], *, dashboard: bool) -> T:
    """The result of `prepare`, computed in a thread while Ray starts; its InputError ends the session that was started
    for it."""
    with gc_paused(), ThreadPoolExecutor(1) as executor:
        preparing = executor.submit(prepare)
        cluster.connect(dashboard=dashboard)
        try:
            return preparing.result()
        except InputError:
            session.end()
            raise
