"""The tuning service as a command: the bases it offers, its Ray cluster, its web server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm import cluster
from raytune_llm.data.findings import many
from raytune_llm.jobs import stopping
from raytune_llm.jobs.help import called
from raytune_llm.jobs.schema import ServiceJob
from raytune_llm.jobs.summary import next_step
from raytune_llm.service.records import State
from raytune_llm.serving.deploy.config import bound, read_key_hashes
from raytune_llm.session import FILE, MODE, TOKEN

if TYPE_CHECKING:
    from fastapi import FastAPI

    from raytune_llm.models.base import Base
    from raytune_llm.service.answers.base import Answering
    from raytune_llm.service.api.backend import Backend
    from raytune_llm.service.api.page_checks import DataChecks
    from raytune_llm.service.controller import Controller
    from raytune_llm.service.head import Head
    from raytune_llm.service.store import Store

ACTIVE = (State.validating_files, State.queued, State.running)


@dataclass(frozen=True)
class Parts:
    """What a service is made of."""

    bases: Mapping[str, Base]
    store: Store
    controller: Controller
    answering: Answering
    checks: DataChecks


def run_service(job: ServiceJob) -> int:
    """Serve until interrupted. Raises InputError."""
    from raytune_llm.jobs.offering import offered_bases
    from raytune_llm.jobs.web_server import WebServer
    from raytune_llm.service.local_state import only_service

    hashes = read_key_hashes(job.service.api_key_env, key="service.api_key_env")
    cluster.set_environment()
    with ExitStack() as stack:
        listener = stack.enter_context(bound(job.service.host, job.service.port, key="service.port"))
        bases = offered_bases(job.service)
        stack.enter_context(only_service(job.home))
        stopping.interrupt_at_sigterm()
        parts = _start(job, bases, stack)
        backend = make_backend(job, parts, hashes)
        server = WebServer(
            make_app(backend),
            drain_seconds=job.serve.drain_seconds,
            on_start=lambda: print(greeting(job, parts.store), flush=True),
            on_stop=backend.closing.set,
        )
        parts.controller.start()
        server.run([listener])
    print(farewell(parts.store), flush=True)
    return 0


def _start(job: ServiceJob, bases: Mapping[str, Base], stack: ExitStack) -> Parts:
    """The cluster and what works on it; the stack ends them. Raises InputError."""
    from raytune_llm.jobs.offering import Planner
    from raytune_llm.service import head
    from raytune_llm.service.answers.base import Cluster
    from raytune_llm.service.api.page_checks import DataChecks
    from raytune_llm.service.check_process import CheckProcess
    from raytune_llm.service.controller import Controller
    from raytune_llm.service.own_runner import OwnRunner
    from raytune_llm.service.ray_cluster import open_cluster
    from raytune_llm.service.store import Store

    runner, own_head = open_cluster(job.service, job.home)
    store, planner = Store(job.home), Planner(job.service, job.home, dict(bases))
    store.delete_partial_files()
    controller = Controller(store, job.service, runner, planner=planner)
    if own_head is not None:
        stack.callback(lambda: head.stop(job.home) if controller.is_idle else None)
    environment = environment_of(own_head, job.service.api_key_env)
    if isinstance(runner, OwnRunner):
        runner.on_start = lambda new: environment.update(new.environment)
    joined = Cluster(environment=environment, has_gpu=runner.has_gpu)
    answering = job.service.answers.start(job.serve, job.registry_dir, bases, joined)
    stack.callback(answering.close)
    hidden = (job.service.api_key_env or "",)
    checks = DataChecks(
        store,
        job.service,
        planner,
        has_gpu=runner.has_gpu,
        start_process=lambda command: CheckProcess(command, hidden=hidden),
    )
    stack.callback(checks.close)
    stack.callback(controller.close)
    return Parts(bases, store, controller, answering, checks)


def make_backend(job: ServiceJob, parts: Parts, hashes: tuple[str, ...]) -> Backend:
    """What the routes work with."""
    from raytune_llm.service.api.backend import Backend
    from raytune_llm.service.api.chat import PATHS, chat_router
    from raytune_llm.service.api.page import OPEN_PATHS, page_data, page_files
    from raytune_llm.service.api.page_jobs import JobPages
    from raytune_llm.service.models import OwnedModels

    pages = JobPages(parts.controller, parts.store, job.service)
    return Backend(
        store=parts.store,
        controller=parts.controller,
        service=job.service,
        bases=parts.bases,
        key_hashes=hashes,
        more=(
            chat_router(OwnedModels(job.registry_dir, parts.bases), parts.answering),
            page_files(),
            page_data(pages, parts.checks),
        ),
        open_paths=tuple(OPEN_PATHS),
        body_bytes=dict.fromkeys(PATHS, job.serve.max_body_bytes),
    )


def make_app(backend: Backend) -> FastAPI:
    """The ASGI app."""
    from raytune_llm.service.api.app import create_service_app

    return create_service_app(backend)


def environment_of(own_head: Head | None, api_key_env: str | None) -> dict[str, str]:
    """Of processes that join the cluster: without the clients' keys."""
    kept = {name: value for name, value in os.environ.items() if name != api_key_env}
    if own_head is None:
        return kept
    return {name: value for name, value in kept.items() if name not in (MODE, TOKEN, FILE)} | {**own_head.environment}


def greeting(job: ServiceJob, store: Store) -> str:
    """Where the service is, what it offers and what it has to do, with a first use."""
    url = job.serve.url
    key = "OPENAI_API_KEY=none" if job.service.api_key_env is None else "OPENAI_API_KEY=$YOUR_KEY"
    states = _states(store)
    waiting = states.count(State.queued) + states.count(State.validating_files)
    lines = [
        ("tuning service", url),
        ("page", f"{url.removesuffix('/v1')}/tuning"),
        ("API", f"{url.removesuffix('/v1')}/docs"),
        ("bases", ", ".join(job.service.models)),
        ("jobs", f"{states.count(State.running)} running, {waiting} waiting, {states.count(State.paused)} paused"),
    ]
    example = next_step(f"OPENAI_BASE_URL={url} {key} python", "then openai.OpenAI().fine_tuning.jobs.create(…)")
    return "\n".join(f"{name:<15} {value}" for name, value in lines) + example + "\nCtrl-C stops it."


def farewell(store: Store) -> str:
    """What is left to do."""
    states = _states(store)
    running, waiting = states.count(State.running), sum(state in ACTIVE for state in states)
    if not waiting:
        return "stopped"
    verb = "runs" if running == 1 else "run"
    left = f"{many(running, 'job')} {verb} on" if running else f"{many(waiting, 'job')} left"
    return f"stopped; {left}: {called('service')} with the same keys picks them up"


def _states(store: Store) -> list[State]:
    """Of all jobs."""
    found = [store.status(request.id) for request in store.requests()]
    return [status.state for status in found if status is not None]
