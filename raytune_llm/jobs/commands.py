"""What each job does, stage by stage: check → annotate → train or sweep → compare → publish → deploy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raytune_llm import cluster
from raytune_llm.errors import input_errors
from raytune_llm.jobs import annotate as annotation_job
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import (
    AnnotateJob,
    CheckJob,
    EvaluateJob,
    RegistryAction,
    RegistryJob,
    ServeJob,
    SweepJob,
    TrainJob,
)
from raytune_llm.jobs.setup import read_given
from raytune_llm.jobs.stages import prepare_job, train_version
from raytune_llm.stores.disk_full import explain_disk_full

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.serving.catalog import Endpoint


def check(job: CheckJob) -> int:
    """Read, parse and tokenize everything, also of earlier stages; print what was found. Raises InputError for data
    that can't be used."""
    from raytune_llm.jobs.prepare import prepare

    print(prepare(job).diagnosis.text())
    with input_errors():
        given = read_given(job)
    for own, records in given:
        print(f"\nearlier stage: {own.data.train}\n{prepare(own, records).diagnosis.text()}")
    print(summary.next_step("python jobs/train.py", "with the same overrides tunes on this data"))
    return 0


def annotate(job: AnnotateJob) -> int:
    """A teacher writes rationales and labels; the terminal says what came of it."""
    output = job.output or f"{job.run_dir}/train.jsonl"
    print(annotation_job.run_annotation(job, output).text())
    print(summary.next_step(f"python jobs/train.py method=dss data.train={output}", "tunes on it"))
    return 0


def train(job: TrainJob) -> int:
    """One tuning run, from records to a registry version; the stages that its method needs before it."""
    started = prepare_job(job)
    outcome, conclusion = train_version(started)
    print(summary.of_training(started.job, outcome, conclusion, started.earlier))
    return 0


def sweep(job: SweepJob) -> int:
    """A sweep, from records to a registered winner, deployed when serve.deploy is set."""
    conclusion = run_sweep(job)
    if not job.serve.deploy:
        return 0
    return hold(deploy(job, [conclusion.version.reference]))


def run_sweep(job: SweepJob) -> PublishResult:
    """The sweep itself; its leaderboard is printed and written, its winner published."""
    from raytune_llm.sweep.plan import make_plan

    def check() -> None:
        from raytune_llm.jobs.prepare import check_sweep

        check_sweep(job, planned)

    planned = make_plan(job.trial_config(), job.sweep.axes())
    started = prepare_job(job, check)
    job = started.job
    print(f"{job.sweep.search.num_trials(planned)} trials; {planned.sentence()}", flush=True)
    with explain_disk_full(job.home, job.run):
        import ray

        from raytune_llm.jobs.publish import publish_trial
        from raytune_llm.stores.storage import open_storage
        from raytune_llm.sweep import leaderboard, tuner
        from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

        config, examples = job.trial_config(), ray.put(started.prepared.examples)
        outcomes = tuner.run(job.sweep, config, planned, examples, started.use_gpu, started.interactive)
        rows = leaderboard.leaderboard(outcomes, planned, config.objective)
        open_storage(job.run_dir).write("leaderboard.csv", leaderboard_csv(rows).encode())
        print("\n" + leaderboard_table(rows, job.method.metric, shown=10), flush=True)
        won = leaderboard.winner(outcomes, config.objective)
        conclusion = publish_trial(
            job.with_values(planned.values(won.trial.values)),
            started.prepared,
            won,
            parent=f"{job.name}/{job.run}",
            use_gpu=started.use_gpu,
        )
    print(summary.of_sweep(job, outcomes, won, conclusion, started.earlier), flush=True)
    return conclusion


def demo(job: SweepJob) -> int:
    """A sweep whose winner is served, asked beside its base, and taken down again."""
    from raytune_llm.serving.verify.client import complete

    conclusion = run_sweep(job)
    endpoint = deploy(job, [conclusion.version.reference])
    try:
        names = [entry.names[0] for entry in endpoint.catalog.entries]
        for sample in conclusion.proof.samples[:3]:
            answers = {name: complete(endpoint, name, sample.prompt) for name in names}
            print(summary.of_answers(sample.prompt, sample.reference, answers), flush=True)
    finally:
        take_down()
    print(
        summary.next_step(f"python jobs/serve.py adapter={conclusion.version.reference} home={job.home}", "keeps it up")
    )
    return 0


def evaluate(job: EvaluateJob) -> int:
    """Base against a registered version on the job's data."""
    from raytune_llm.jobs.publish import evaluate_version

    cluster.connect()
    print(evaluate_version(job))
    return 0


def serve(job: ServeJob) -> int:
    """An endpoint that stays until it is interrupted; with serve.config_file, the file for `serve deploy` instead."""
    from raytune_llm.serving.deploy import serve_yaml

    references = [reference.strip() for reference in job.version.split(",")]
    if job.serve.config_file is None:
        return hold(deploy(job, references))
    print(serve_yaml.write(job.serve, job.registry_dir, references))
    return 0


def hold(endpoint: Endpoint) -> int:
    """Stay until interrupted; then let requests in flight end."""
    from raytune_llm.serving.deploy import endpoint as deployment

    print("Ctrl-C stops it.", flush=True)
    try:
        deployment.watch(endpoint)
    except KeyboardInterrupt:
        take_down()
    return 0


def take_down() -> None:
    """Let requests in flight end, then end Ray Serve: with its session where that is this process's own, because
    Ray prints two warnings into a session that outlives Ray Serve's controller."""
    from raytune_llm.serving.deploy import endpoint as deployment

    deployment.drain()
    if not cluster.end_own_session():
        deployment.stop()


def deploy(job: ServeJob | SweepJob, references: Sequence[str]) -> Endpoint:
    """Start the endpoint, check that its answers match PEFT's, and print how to use it."""
    from raytune_llm.serving.deploy import endpoint as deployment
    from raytune_llm.serving.verify.endpoint import check_endpoint
    from raytune_llm.serving.verify.parity import probes

    cluster.connect()
    endpoint = deployment.start(job.serve, job.registry_dir, list(references))
    try:
        texts = [probe for version in endpoint.catalog.versions for probe in probes(version)]
        results = check_endpoint(endpoint, job.registry_dir, texts)
    except BaseException:
        deployment.stop()
        raise
    for result in results:
        print(result)
    print(summary.of_endpoint(endpoint), flush=True)
    return endpoint


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
