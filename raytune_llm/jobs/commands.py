"""One function a command: check, import_openai, annotate, train, sweep, control, demo, evaluate, serve, service,
registry."""

from __future__ import annotations

from raytune_llm import cluster
from raytune_llm.jobs import annotate as annotation_job
from raytune_llm.jobs import summary
from raytune_llm.jobs.actions import RegistryAction
from raytune_llm.jobs.check import check_data
from raytune_llm.jobs.deploy import deploy, hold, take_down
from raytune_llm.jobs.help import called
from raytune_llm.jobs.reporting import reported, training_begins, training_ended
from raytune_llm.jobs.run_result import already_published
from raytune_llm.jobs.schema import (
    AnnotateJob,
    CheckJob,
    ControlJob,
    EvaluateJob,
    ImportOpenAIJob,
    RegistryJob,
    ServeJob,
    ServiceJob,
    SweepJob,
    TrainJob,
)
from raytune_llm.jobs.stages import prepare_job, train_version
from raytune_llm.jobs.sweep import run_sweep


def show_plan(job: TrainJob) -> int:
    """What a training or sweep will take, by a few rehearsed steps."""
    from raytune_llm.jobs.plan import plan_job

    print(plan_job(job), flush=True)
    return 0


def check(job: CheckJob) -> int:
    """Read, parse and tokenize all records, also those of earlier stages, print their diagnosis and write it as JSON
    and HTML. Raises InputError for data that can't be used."""
    check_data(job)
    print(summary.next_step(called("train"), "with the same overrides tunes on this data"))
    return 0


def import_openai(job: ImportOpenAIJob) -> int:
    """What files made for OpenAI's fine-tuning are, with the sweep for each; with start that sweep, and with answers
    the comparison of its version, or a given one, with the old model's. Raises InputError."""
    from raytune_llm.jobs.import_openai import run_import

    reference = run_import(job)
    if reference is None or not job.serve.deploy:
        return 0
    return hold(deploy(job, [reference]), job.serve.drain_seconds)


def annotate(job: AnnotateJob) -> int:
    """Have a teacher write rationales and labels, and print a report of them."""
    output = job.output or f"{job.run_dir}/train.jsonl"
    print(annotation_job.run_annotation(job, output).text())
    print(summary.next_step(f"{called('train')} method=dss data.train={output}", "tunes on it"))
    return 0


def train(job: TrainJob) -> int:
    """One tuning run, from records to a registry version, after the stages that its method needs. A run that has ended
    is not run again."""
    if job.plan:
        return show_plan(job)
    if already_published(job) is not None:
        return 0
    with reported(job, "train"):
        started = prepare_job(job)
        training_begins(started, num_trials=1, num_running=1, steps_total=job.tuning.steps)
        outcome, published, predicted, page = train_version(started)
        training_ended(started, outcome)
    print(summary.of_training(started, outcome, published, predicted, page))
    return 0


def sweep(job: SweepJob) -> int:
    """A sweep, from records to a published winner, deployed when serve.deploy is set. A run that has ended is not run
    again, unless it is to be extended."""
    if job.plan:
        return show_plan(job)
    published = None if job.sweep.extend else already_published(job)
    reference = published or run_sweep(job).version.reference
    if not job.serve.deploy:
        return 0
    return hold(deploy(job, [reference]), job.serve.drain_seconds)


def control(job: ControlJob) -> int:
    """Look at runs, and have a running sweep do something: see jobs/control.py. 1 for what was refused."""
    from raytune_llm.jobs.control import run_control

    return run_control(job)


def demo(job: SweepJob) -> int:
    """A sweep whose winner is served, compared with its base on a few prompts, and taken down again."""
    from raytune_llm.serving.verify.client import complete

    if job.plan:
        return show_plan(job)
    published = run_sweep(job)
    endpoint = deploy(job, [published.version.reference])
    try:
        names = [entry.names[0] for entry in endpoint.catalog.entries]
        for sample in published.result.samples[:3]:
            answers = {name: complete(endpoint, name, sample.prompt) for name in names}
            print(summary.of_answers(sample.prompt, sample.reference, answers), flush=True)
    finally:
        take_down()
    command = f"{called('serve')} adapter={published.version.reference} home={job.home}"
    print(summary.next_step(command, "serves it until interrupted"))
    return 0


def evaluate(job: EvaluateJob) -> int:
    """Compare a registered version with its base on the job's data."""
    from raytune_llm.jobs.evaluate import evaluate_version

    cluster.connect()
    print(evaluate_version(job))
    return 0


def serve(job: ServeJob) -> int:
    """An endpoint that stays until it is interrupted; with serve.config_file, the file for `serve deploy` instead."""
    from raytune_llm.serving.deploy import serve_yaml

    references = [reference.strip() for reference in job.version.split(",")]
    if job.serve.config_file is None:
        return hold(deploy(job, references), job.serve.drain_seconds)
    print(serve_yaml.write(job.serve, job.registry_dir, references))
    return 0


def service(job: ServiceJob) -> int:
    """A tuning service that stays until it is interrupted; its jobs run on without it."""
    from raytune_llm.jobs.service import run_service

    return run_service(job)


def registry(job: RegistryJob) -> int:
    """List, show, alias or roll back."""
    from raytune_llm.stores import registry as registries

    store = registries.Registry(job.registry_dir)
    reference = job.version or ""
    match job.action:
        case RegistryAction.list:
            print(registries.table(store.list()))
        case RegistryAction.show:
            print(registries.describe(store.show(reference)))
        case RegistryAction.alias:
            store.alias(reference, job.alias)
            print(registries.table(store.versions(reference.partition("@")[0])))
        case RegistryAction.rollback:
            store.rollback(reference)
            print(registries.table(store.versions(reference)))
    return 0
