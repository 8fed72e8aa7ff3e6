"""A service with scripted jobs, in which the page at /tuning can be seen in all its states.

The page and its data routes are the real ones; jobs, their runs and the rest of the API are made up here. Look at it
with `python tests/service/page_world.py PORT [KEY]`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.service.answers.in_process import InProcess
from raytune_llm.service.api.page import OPEN_PATHS, page_data, page_files
from raytune_llm.service.api.page_checks import DataChecks
from raytune_llm.service.api.page_jobs import JobPages
from raytune_llm.service.check_process import Finished
from raytune_llm.service.config import Auto, Service
from raytune_llm.service.controller import Controller, Job
from raytune_llm.service.planning import DataFacts, Planned
from raytune_llm.service.records import (
    DataRef,
    Estimate,
    Event,
    JobError,
    Result,
    State,
    Status,
    StoredFile,
    TuningRequest,
    Wanted,
    new_id,
    owner_of,
    registry_name,
)
from raytune_llm.service.run_files import Point, RunFiles, Trial
from raytune_llm.service.store import Store
from raytune_llm.serving.api.auth import KEY_IN_SCOPE, bearer
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.keys import key_hash

RATES, SIZES = (0.3, 1.0, 3.0), (1, 4, 16)
STEPS = 200
BAD_LINE = "not json"
EXCEL = "<img src=x onerror=alert(1)>.jsonl"
"""A file whose name is markup."""


def config(**fields: Any) -> Service:
    auto = Auto(
        n_epochs=(1, 2, 3),
        batch_size=(4, 8, 16),
        learning_rate_multiplier=RATES,
        adapter_size=(4, 16),
        max_steps=2000,
    )
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 8080,
        "api_key_env": None,
        "models": ("demo", "qwen3-0.6b"),
        "overrides": {},
        "ray_address": None,
        "max_jobs": 2,
        "max_jobs_per_key": None,
        "max_queued_per_key": 100,
        "device_hours_per_key": 10.0,
        "max_file_bytes": 1_000_000,
        "max_stored_bytes_per_key": 20_000_000,
        "data_prefixes": (),
        "check_timeout_seconds": 60.0,
        "poll_seconds": 1.0,
        "auto": auto,
        "answers": InProcess(),
    }
    return Service(**values | fields)


class ScriptedController(Controller):
    """Jobs that change when a test changes them."""

    def __init__(self) -> None:
        self.all: dict[str, Job] = {}
        self.lines: dict[str, list[Event]] = {}

    def add(self, job: Job, lines: Sequence[tuple[str, str]] = ()) -> Job:
        self.all[job.request.id] = job
        events = self.lines.setdefault(job.request.id, [])
        for level, message in lines:
            number = len(events)
            at = job.request.created + 3 * number
            events.append(Event(id=f"ftevent-{number}", created=at, level=level, kind="message", message=message))
        return job

    def move(self, id: str, state: State, **fields: Any) -> Job:
        job = self.all[id]
        changes = (*job.status.changes, (state.value, time.time()))
        status = replace(job.status, state=state, changes=changes, **fields)
        line = ("info", f"The job is now {state.value}")
        return self.add(replace(job, status=status, place=None), [line])

    def job(self, id: str, owner: str) -> Job | None:
        job = self.all.get(id)
        return job if job is not None and job.request.owner == owner else None

    def jobs(self, owner: str) -> list[Job]:
        mine = [job for job in self.all.values() if job.request.owner == owner]
        return sorted(mine, key=lambda job: -job.request.created)

    def cancel(self, id: str, owner: str) -> Job | None:
        return self._asked(id, owner, State.cancelled, Wanted.cancel)

    def pause(self, id: str, owner: str) -> Job | None:
        return self._asked(id, owner, State.paused, Wanted.pause)

    def resume(self, id: str, owner: str) -> Job | None:
        return self._asked(id, owner, State.running, Wanted.run)

    def _asked(self, id: str, owner: str, state: State, wanted: Wanted) -> Job | None:
        job = self.job(id, owner)
        if job is None:
            return None
        if job.status.state.is_final:
            raise ApiError(400, f"the job has {job.status.state.value} already", code="invalid_state")
        return self.move(id, state, wanted=wanted)

    def events(self, id: str, owner: str) -> Sequence[Event] | None:
        return None if self.job(id, owner) is None else self.lines[id]

    def device_hours(self, owner: str) -> float:
        return sum(job.status.device_seconds for job in self.jobs(owner)) / 3600


def sweep_trials(until: int, count: int = 9, *, every: int = 10) -> list[Trial]:
    """Trials of a sweep over rates and sizes, up to a step; half of them stop early."""
    trials = []
    begun = time.time() - until
    for i in range(count):
        rate, size = RATES[i % 3] * (1 + i // 9), SIZES[(i // 3) % 3]
        last = until if i % 2 == 0 else min(until, STEPS // 2)
        points = []
        for step in range(every, last + 1, every):
            fall = math.exp(-step * rate * (1 + 0.1 * size) / 140)
            noise = 0.05 * math.sin(step * (i + 1))
            metrics = {"train/loss": 0.02 + 2.3 * fall + noise * fall}
            if step % 25 == 0 or every > 10:
                metrics |= {"eval/loss": 0.05 + 2.1 * fall + 0.004 * i, "eval/token_accuracy": 1 - 0.6 * fall}
            points.append(Point(step=step, time=begun + step, metrics=metrics))
        values = {"tuning.learning_rate_multiplier": rate, "tuning.adapter_size": size}
        trials.append(Trial(id=f"7ede0_{i:05d}", values=values, points=points))
    return trials


@dataclass
class ScriptedRun:
    """What a run has written."""

    shown: list[Trial]
    found: Mapping[str, Any] | None = None
    files: Mapping[str, bytes] | None = None

    def trials(self) -> list[Trial]:
        return self.shown

    def outcome(self) -> Mapping[str, Any] | None:
        return self.found

    def leaderboard(self) -> list[Mapping[str, str]]:
        if self.found is None:
            return []
        rows = []
        for trial in self.shown:
            best = min((p for p in trial.points if "eval/loss" in p.metrics), key=lambda p: p.metrics["eval/loss"])
            row = {"trial": trial.id, **trial.values, "best_step": best.step, **best.metrics, "ended": "complete"}
            rows.append({key: str(value) for key, value in row.items()})
        return sorted(rows, key=lambda row: float(row["eval/loss"]))

    def file(self, name: str) -> bytes | None:
        return (self.files or {}).get(name)


class ScriptedCheck:
    """A data check that ends when its world lets it."""

    def __init__(self, world: World, command: Sequence[str]) -> None:
        self._world, self._location, self._folder = world, command[2], Path(command[3])

    def poll(self) -> Finished | None:
        if self._world.is_check_held:
            return None
        text = Path(self._location).read_text()
        if BAD_LINE in text:
            bad = [i for i, line in enumerate(text.splitlines(), 1) if line == BAD_LINE]
            lines = [f"  {self._location}:{i}: column 1: not JSON: expecting value, near '{BAD_LINE}'" for i in bad]
            return Finished(2, f"error: {len(bad)} problems in the data:\n" + "\n".join(lines) + "\nCorrect them.")
        (self._folder / "report.json").write_text(json.dumps(report(self._location, text.count("\n"))))
        return Finished(0, "")

    def kill(self) -> None:
        pass


def report(location: str, records: int) -> dict[str, Any]:
    """A report.json with a warning, as the doctor writes it."""

    def lengths(*counts: int, first: int) -> dict[str, Any]:
        edges = [first * 2**i for i in range(len(counts) + 1)]
        return {
            "median": edges[1],
            "most": edges[-2],
            "longest": edges[-1] - 1,
            "total": 30 * records,
            "histogram": {"edges": edges, "counts": counts},
        }

    def split(records: int) -> dict[str, Any]:
        return {
            "num_records": records,
            "kinds": {"Supervised": records},
            "sources": {location: records},
            "num_bytes": 105 * records,
            "prompt_tokens": lengths(39, 856, 105, first=8),
            "completion_tokens": lengths(870, 120, 10, first=2),
            "truncation": {"records": records, "cut": 2, "longest_tokens": 62},
            "labels": {"sarcastic": records * 4 // 5, "sincere": records // 5},
            "pairs": None,
        }

    where = f"{Path(location).name}:17"
    warning = {
        "kind": "imbalance",
        "severity": "warning",
        "split": "train",
        "text": "80 % of the answers are 'sarcastic': a model that always says so looks good",
        "count": 5,
        "places": [{"where": where, "excerpt": "…says <b>Great.</b> Is Lisa sarcastic or sincere?"}],
    }
    note = {"kind": "cost", "severity": "note", "split": "", "text": "an epoch is about 130 GFLOP", "places": []}
    segments = [{"text": "Is Amy sarcastic or sincere?\n", "has_loss": False}, {"text": "sincere", "has_loss": True}]
    return {
        "verdict": "usable, with 1 warning",
        "splits": {"train": split(records), "eval": split(records // 5)},
        "carved": True,
        "max_tokens": 256,
        "findings": [warning, {**note, "count": None}],
        "advice": [],
        "previews": [{"split": "train", "where": where, "source": location, "sequences": {"completion": segments}}],
        "notes": [],
        "parameters": 1_000_000,
    }


class ScriptedPlanner:
    """Commands that a ScriptedCheck understands."""

    def check_command(self, request: TuningRequest, folder: str) -> tuple[str, ...]:
        return ("raytune-llm", "check", request.training.location, folder)

    def plan(self, request: TuningRequest, facts: DataFacts, *, has_gpu: bool) -> Planned:
        epochs = request.hyperparameters.get("n_epochs", "auto")
        if epochs != "auto" and epochs > 50:
            raise ApiError(400, "n_epochs: must be at most 50", code="invalid_value", param="n_epochs")
        most = 3 if epochs == "auto" else epochs
        trials = 9 if "auto" in request.hyperparameters.values() else 1
        tokens = round(facts.train_tokens * most * trials)
        estimate = Estimate(
            records=facts.train_records, epochs=most, tokens=tokens, trials=trials, device_hours=tokens / 2e6
        )
        return Planned(command=("raytune-llm", "sweep"), estimate=estimate)


class World:
    """The service, its jobs and its runs."""

    def __init__(self, folder: Path, *, key: str | None = None, **fields: Any) -> None:
        self.key = key
        self.owner = owner_of("" if key is None else key_hash(key))
        self.controller, self.store, self.service = ScriptedController(), Store(str(folder)), config(**fields)
        self.runs: dict[str, ScriptedRun] = {}
        self.is_check_held = False
        self.checks = DataChecks(
            self.store,
            self.service,
            ScriptedPlanner(),
            has_gpu=lambda: False,
            start_process=lambda command: ScriptedCheck(self, command),
        )
        pages = JobPages(self.controller, self.store, self.service, open_run=self._run)
        self.app = FastAPI()
        self.app.include_router(page_files())
        self.app.include_router(page_data(pages, self.checks))
        _add_api(self.app, self)
        self.app.add_middleware(Keys, key=key)

    def _run(self, home: str, name: str, run: str) -> RunFiles:
        return self.runs.get(run) or ScriptedRun([])  # type: ignore[return-value]

    def upload(self, name: str, content: bytes, owner: str | None = None) -> StoredFile:
        id = new_id("file")
        file = StoredFile(
            id=id,
            owner=owner or self.owner,
            filename=name,
            purpose="fine-tune",
            num_bytes=len(content),
            num_lines=content.count(b"\n"),
            sha256=hashlib.sha256(content).hexdigest(),
            created=int(time.time()),
            location=self.store.file_location(id, ".jsonl"),
        )
        with tempfile.NamedTemporaryFile(delete=False) as local:
            local.write(content)
        self.store.add_file(file, Path(local.name))
        return file

    def request(self, suffix: str | None, minutes_ago: float = 0, **fields: Any) -> TuningRequest:
        file = fields.pop("file", None) or self.upload(f"{suffix}.jsonl", b'{"prompt": "a", "completion": "b"}\n')
        owner = fields.pop("owner", self.owner)
        values: dict[str, Any] = {
            "id": new_id("ftjob"),
            "owner": owner,
            "created": int(time.time() - 60 * minutes_ago),
            "api": "openai",
            "method": "sft",
            "model": "demo",
            "base": "demo",
            "init_adapter": None,
            "training": DataRef(name=file.id, location=file.location),
            "validation": None,
            "hyperparameters": {"n_epochs": "auto", "learning_rate_multiplier": "auto"},
            "name": registry_name(owner, suffix, "demo"),
            "suffix": suffix,
            "seed": 7,
            "metadata": {},
            "wandb": None,
        }
        return TuningRequest(**values | fields)

    def add(
        self,
        state: State,
        suffix: str | None,
        minutes_ago: float,
        *,
        place: int | None = None,
        lines: Sequence[tuple[str, str]] = (),
        of_request: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Job:
        """A job on its usual way to a state."""
        way = [State.validating_files, State.queued, State.running, state]
        if state in way[:3]:
            way = way[: way.index(state) + 1]
        if state is State.failed:
            way = [State.validating_files, state]
        request = self.request(suffix, minutes_ago, **of_request or {})
        begun = request.created
        times = [0.0, 4.0, 20.0, 20.0 + 30.0 * max(1.0, minutes_ago)]
        changes = tuple((one.value, begun + at) for one, at in zip(way, times, strict=False))
        status = Status(state=state, changes=changes, **fields)
        usual = [("info", f"Created fine-tuning job: {request.id}"), ("info", "Validating training file")]
        return self.controller.add(Job(request, status, place), [*usual, *lines])


COMMAND = (
    "raytune-llm",
    "sweep",
    "home=s3://bucket/tuning",
    "name=support",
    "model=demo",
    "method=sft",
    "data.train=s3://bucket/tuning/service/files/file-0f/content.jsonl",
    "sweep.space.tuning.steps=[100,200]",
)
ESTIMATE = Estimate(records=1000, epochs=3, tokens=810_000, trials=9, device_hours=0.4)


def running(world: World, until: int = 120, count: int = 9, **fields: Any) -> Job:
    job = world.add(
        State.running,
        "support-tone",
        4,
        command=COMMAND,
        estimate=ESTIMATE,
        device_seconds=190.0,
        lines=[("info", "Files validated, moving job to queued state"), ("info", "Fine-tuning job started")],
        **fields,
    )
    world.runs[job.request.id] = ScriptedRun(sweep_trials(until, count))
    return job


def succeeded(world: World, suffix: str, minutes_ago: float, *, is_named: bool) -> Job:
    version = f"{suffix}@3"
    text = (
        "Tuned beats base on eval/loss by 3.086 [2.970, 3.203], and champion by 0.041 [0.012, 0.070]."
        if is_named
        else "Tuned is not better than the champion on eval/loss by more than chance: 0.003 [-0.011, 0.017]."
    )
    metrics = {"eval/loss": 0.0541, "eval/token_accuracy": 0.981, "eval/accuracy": 0.977, "eval/f1_macro": 0.975}
    result = Result(version=version, is_named=is_named, text=text, step=200, metrics=metrics, trained_tokens=812_345)
    csv_file = world.upload("step_metrics.csv", b"step,train_loss\n1,2.0\n")
    job = world.add(
        State.succeeded,
        suffix,
        minutes_ago,
        command=COMMAND,
        estimate=ESTIMATE,
        result=result,
        device_seconds=1320.0,
        result_files=(csv_file.id,),
        lines=[("info", text), ("info" if is_named else "warn", "The job has successfully completed")],
    )
    world.runs[job.request.id] = ScriptedRun(
        sweep_trials(STEPS),
        {"metric": "eval/loss", "trial": "7ede0_00002", "version": version},
        {"evaluation-eval.md": b"# support@3\n", "leaderboard.csv": b"trial,best_step\n"},
    )
    folder = Path(world.store.check_folder(job.request.id))
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<!doctype html><title>Data check</title>")
    (folder / "report.json").write_text(json.dumps(report("content.jsonl", 1000)))
    return job


def failed(world: World) -> Job:
    lines = [f"  file-91.jsonl:{i}: messages: found no assistant turn, expected at least one" for i in (3, 17, 208)]
    message = "3 problems in the data:\n" + "\n".join(lines)
    error = JobError(code="invalid_training_file", message=message, param="training_file")
    return world.add(State.failed, "broken", 90, error=error, lines=[("error", f"The job failed: {message}")])


def fill(world: World) -> dict[str, Job]:
    """A job in each state."""
    waiting = {"command": COMMAND, "estimate": ESTIMATE}
    return {
        "validating": world.add(State.validating_files, "fresh", 0),
        "queued": world.add(State.queued, "tickets", 2, place=3, **waiting),
        "running": running(world),
        "paused": world.add(State.paused, "legal", 35, note="no device hours are left", device_seconds=900, **waiting),
        "succeeded": succeeded(world, "support", 60, is_named=True),
        "unnamed": succeeded(world, "support-v2", 75, is_named=False),
        "failed": failed(world),
        "cancelled": world.add(State.cancelled, None, 2000, device_seconds=30, **waiting),
    }


class Keys:
    """As the service's own: a key for all but what is open."""

    def __init__(self, app: ASGIApp, *, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            given = bearer(headers.get("authorization", ""))
            scope[KEY_IN_SCOPE] = "" if self._key is None else key_hash(given)
            if self._key is not None and given not in (self._key, "other") and scope["path"] not in OPEN_PATHS:
                refusal = ApiError(401, "no valid API key; send it as 'Authorization: Bearer KEY'", code="invalid_key")
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _add_api(app: FastAPI, world: World) -> None:
    """What the page asks of the routes that all clients have."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Any:
        return error.response()

    @app.get("/v1/files")
    def files() -> Any:
        return {"data": [{"id": file.id, "filename": file.filename} for file in world.store.files()]}

    @app.post("/v1/files")
    async def add(file: UploadFile) -> Any:
        stored = world.upload(file.filename or "", await file.read())
        return {"id": stored.id, "filename": stored.filename, "bytes": stored.num_bytes}

    @app.get("/v1/files/{id}/content")
    def content(id: str) -> Any:
        file = world.store.file(id)
        assert file is not None
        return StreamingResponse(iter([world.store.content(file)]))

    @app.post("/v1/fine_tuning/jobs")
    async def create(request: Request) -> Any:
        body = await request.json()
        file = world.store.file(body["training_file"])
        type = body["method"]["type"]
        made = world.request(
            body.get("suffix"),
            file=file,
            model=body["model"],
            hyperparameters=body["method"][type]["hyperparameters"],
        )
        if made.suffix == "refused":
            return ApiError(429, "this key has 100 unfinished jobs", code="quota").response()
        status = Status(state=State.validating_files, changes=(("validating_files", time.time()),))
        world.controller.add(Job(made, status, None), [("info", f"Created fine-tuning job: {made.id}")])
        return {"id": made.id}

    @app.post("/v1/fine_tuning/jobs/{id}/{action}")
    def act(id: str, action: str) -> Any:
        assert action in ("cancel", "pause", "resume")
        job = getattr(world.controller, action)(id, world.owner)
        return {"id": job.request.id, "status": job.status.state.value}

    @app.get("/v1/fine_tuning/jobs/{id}/events")
    def events(id: str) -> Any:
        found = world.controller.events(id, world.owner) or ()
        data = [
            {
                "id": one.id,
                "created_at": one.created,
                "level": one.level,
                "message": one.message,
                "type": one.kind,
            }
            for one in reversed(found)
        ]
        return {"data": data, "has_more": False}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        if body["model"] == "qwen3-0.6b":
            return JSONResponse({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
        words = ["<b>sin", "cere", "</b>"] if "@" in body["model"] else ["I am ", "not ", "sure."]

        async def written() -> Any:
            for word in words:
                yield f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n"
                await asyncio.sleep(0)
            yield "data: [DONE]\n\n"

        return StreamingResponse(written(), media_type="text/event-stream")


if __name__ == "__main__":
    import uvicorn

    shown = World(Path(tempfile.mkdtemp()), key=sys.argv[2] if len(sys.argv) > 2 else None)
    fill(shown)
    uvicorn.run(shown.app, port=int(sys.argv[1]), log_level="warning")
