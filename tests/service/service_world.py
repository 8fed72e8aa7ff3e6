"""A service's app without a cluster: a real store in a folder, offered bases by name alone, and jobs that a test moves
by hand."""

import contextlib
import dataclasses
import threading
import time

import uvicorn
from fastapi.testclient import TestClient

from raytune_llm.data.demo import path as demo_path
from raytune_llm.models.base import Base, DType
from raytune_llm.service.answers.in_process import InProcess
from raytune_llm.service.api.app import create_service_app
from raytune_llm.service.api.backend import Backend
from raytune_llm.service.config import Auto, Service
from raytune_llm.service.controller import Job
from raytune_llm.service.records import Estimate, Event, JobError, Result, State, Status, Wanted
from raytune_llm.service.store import Store
from raytune_llm.serving.api.errors import ApiError, invalid
from raytune_llm.serving.api.keys import key_hash

KEYS = ("key-of-ada", "key-of-bob")
CHAT = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
AUTO = Auto(
    n_epochs=(1, 2, 3), batch_size=(4, 8), learning_rate_multiplier=(1.0, 3.0), adapter_size=(4,), max_steps=100
)


class FakeController:
    """Jobs in memory; `move` does what a cluster would."""

    def __init__(self):
        self._jobs, self._events, self._lock = {}, {}, threading.Lock()
        self.max_unfinished = 100

    def create(self, request):
        with self._lock:
            unfinished = [job for job in self._of(request.owner) if not job.status.state.is_final]
            if len(unfinished) >= self.max_unfinished:
                raise ApiError(429, "too many unfinished jobs", code="too_many_jobs")
            self._jobs[request.id] = Job(request, _entered(Status(state=State.validating_files)), None)
            self._events[request.id] = []
        self.say(request.id, f"Created fine-tuning job: {request.id}")
        return self._jobs[request.id]

    def job(self, id, owner):
        job = self._jobs.get(id)
        return job if job is not None and job.request.owner == owner else None

    def jobs(self, owner):
        return self._of(owner)[::-1]

    def cancel(self, id, owner):
        return self._asked(id, owner, State.cancelled, Wanted.cancel, lambda state: not state.is_final)

    def pause(self, id, owner):
        return self._asked(
            id, owner, State.paused, Wanted.pause, lambda state: not state.is_final and state is not State.paused
        )

    def resume(self, id, owner):
        return self._asked(id, owner, State.queued, Wanted.run, lambda state: state is State.paused)

    def events(self, id, owner):
        return None if self.job(id, owner) is None else tuple(self._events[id])

    def device_hours(self, owner):
        return sum(job.status.device_seconds for job in self._of(owner)) / 3600

    def say(self, id, message, kind="message", **data):
        events = self._events[id]
        event = Event(
            id=f"ftevent-{id.removeprefix('ftjob-')}-{len(events)}",
            created=int(time.time()),
            level="info",
            kind=kind,
            message=message,
            data=data,
        )
        events.append(event)

    def move(self, id, state, **changes):
        """To a state, its event first."""
        job = self._jobs[id]
        self.say(id, f"The job is now {state.value}")
        self._jobs[id] = dataclasses.replace(
            job,
            status=_entered(dataclasses.replace(job.status, state=state, **changes)),
            place=1 if state is State.queued else None,
        )

    def succeed(self, id, *, is_named=True, **metrics):
        job = self._jobs[id]
        estimate = Estimate(records=3, epochs=3, tokens=120, trials=4, device_hours=0.5)
        self.move(id, State.queued, estimate=estimate, command=("raytune-llm", "sweep", "home=/x", "name=a b"))
        self.move(id, State.running, attempt=1, is_submitted=True)
        self.say(id, "Step 1", "metrics", step=1, train_loss=float("nan"))
        result = Result(
            version=f"{job.request.name}@1",
            is_named=is_named,
            text="better than the base" if is_named else "not better by more than chance: no model is named",
            step=7,
            metrics={"eval/loss": 0.5, "eval/token_accuracy": 0.75, "train/loss": float("inf"), **metrics},
            trained_tokens=360,
        )
        self.move(id, State.succeeded, result=result, device_seconds=1800.0)

    def fail(self, id, message):
        error = JobError(code="invalid_training_file", message=message, param="training_file")
        self.move(id, State.failed, error=error)

    def _of(self, owner):
        return [job for job in self._jobs.values() if job.request.owner == owner]

    def _asked(self, id, owner, state, wanted, may):
        job = self.job(id, owner)
        if job is None:
            return None
        if not may(job.status.state):
            raise invalid(f"{id} is {job.status.state.value}", param="job_id", code="wrong_state")
        self.move(id, state, wanted=wanted)
        return self._jobs[id]


def _entered(status):
    return dataclasses.replace(status, changes=(*status.changes, (status.state.value, time.time())))


def demo_base():
    return Base(
        name_or_path=str(demo_path("base")),
        revision=None,
        dtype=DType.float32,
        learning_rate=None,
        attention="sdpa",
        chat_template=None,
        eos_token=None,
        from_pretrained={},
    )


def service_config(**changes):
    fields = dict(
        host="127.0.0.1",
        port=8080,
        api_key_env=None,
        models=("demo",),
        overrides={},
        ray_address=None,
        max_jobs=1,
        max_jobs_per_key=None,
        max_queued_per_key=100,
        device_hours_per_key=None,
        max_file_bytes=200_000,
        max_stored_bytes_per_key=500_000,
        data_prefixes=(),
        check_timeout_seconds=60.0,
        poll_seconds=0.02,
        auto=AUTO,
        answers=InProcess(),
    )
    return Service(**{**fields, **changes})


def make_backend(home, keys=(), more=(), open_paths=(), **changes):
    return Backend(
        store=Store(str(home)),
        controller=FakeController(),
        service=service_config(**changes),
        bases={"demo": demo_base()},
        key_hashes=tuple(key_hash(key) for key in keys),
        more=more,
        open_paths=open_paths,
    )


class World:
    """An app, its backend, and a test client of each owner."""

    def __init__(self, home, **options):
        self.backend = make_backend(home, **options)
        self.app = create_service_app(self.backend)
        self.controller = self.backend.controller
        self.client = self.client_of(None)

    def client_of(self, key):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return TestClient(self.app, base_url="http://127.0.0.1:8080", headers=headers, raise_server_exceptions=False)


def upload(client, content=CHAT * 3, name="train.jsonl", purpose="fine-tune"):
    """The answer to an upload."""
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})


def create(world, file, **changes):
    """The answer to a request for a job."""
    return world.client.post("/v1/fine_tuning/jobs", json={"model": "demo", "training_file": file, **changes})


def request_of(world, answer):
    """What was kept of a request for a job that was answered."""
    assert answer.status_code == 200, answer.text
    return world.controller.job(answer.json()["id"], "local").request


def error(response, status, code=None, param=None):
    """The message of an error in OpenAI's shape."""
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert code is None or found["code"] == code, found
    assert param is None or found["param"] == param, found
    return found["message"]


@contextlib.contextmanager
def listening(app):
    """The app on a real port; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        [port] = {socket.getsockname()[1] for one in server.servers for socket in one.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
