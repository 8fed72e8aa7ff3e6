"""Every route of the whole app, chats and page included, with another owner's key: what is another's isn't there."""

from dataclasses import replace

import pytest
from authorisation import HARMLESS, routes
from fastapi.testclient import TestClient
from offered_world import offered, publish
from page_world import ScriptedCheck, ScriptedPlanner
from service_world import CHAT, KEYS, make_backend, upload
from test_service_chat import Echoes

from raytune_llm.service.api.app import create_service_app
from raytune_llm.service.api.chat import chat_router
from raytune_llm.service.api.page import OPEN_PATHS, page_data, page_files
from raytune_llm.service.api.page_checks import DataChecks
from raytune_llm.service.api.page_jobs import JobPages
from raytune_llm.service.models import OwnedModels
from raytune_llm.service.records import owner_of, registry_name
from raytune_llm.serving.api.keys import key_hash

JOBS = "/v1/fine_tuning/jobs"
CHATS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
LISTS = {"data": [], "tuningJobs": [], "jobs": []}
GENERAL = {("POST", "/v1/files"), ("GET", "/v1/fine_tuning/usage"), ("GET", "/tuning/api/service")}
"""Routes that name nothing and concern whoever asks."""


class Whole:
    """The app as `jobs/service.py` makes it, what ada owns in it, and a client of each owner."""

    is_check_held = False

    def __init__(self, root):
        name = registry_name(owner_of(key_hash(KEYS[0])), "wit", "demo")
        publish(root, name, revision="one")
        backend = make_backend(root, keys=KEYS)
        self.checks = DataChecks(
            backend.store,
            backend.service,
            ScriptedPlanner(),
            has_gpu=lambda: False,
            start_process=lambda command: ScriptedCheck(self, command),
        )
        pages = JobPages(backend.controller, backend.store, backend.service)
        models = OwnedModels(f"{root}/registry", offered(demo="one"))
        more = (chat_router(models, Echoes()), page_files(), page_data(pages, self.checks))
        backend = replace(backend, more=more, open_paths=tuple(OPEN_PATHS))
        self.app = create_service_app(backend)
        self.ada, self.bob = (TestClient(self.app, headers={"authorization": f"Bearer {key}"}) for key in KEYS)
        file = upload(self.ada, CHAT * 20).json()["id"]
        job = self.ada.post(JOBS, json={"model": "demo", "training_file": file}).json()["id"]
        backend.controller.succeed(job)
        wanted = {"file": file, "model": "demo", "method": "supervised"}
        check = self.ada.post("/tuning/api/checks", json=wanted).json()["id"]
        self.model, self.file, self.ids = f"{name}@1", file, {"jobs": job, "checks": check}

    def request_of(self, path):
        """A route's path and body with what is ada's."""
        google = {"baseModel": "demo", "supervisedTuningSpec": {"trainingDatasetUri": self.file}}
        filled, body = path, {"model": "demo", "training_file": self.file}
        if path in CHATS:
            body = {"model": self.model}
        elif path == "/tuning/api/checks":
            body = {"file": self.file, "model": "demo", "method": "supervised"}
        elif path.endswith("/estimate"):
            body = {}
        elif "/projects/" in path:
            body = google
        values = {"file_id": self.file, "job_id": self.ids["jobs"], "project": "p", "location": "l"}
        if path.startswith("/tuning/api/"):
            values |= {"id": self.ids[path.split("/")[3]], "name": "step_metrics.csv"}
        elif path.startswith("/v1/models/"):
            values |= {"name:path": self.model}
        for name, value in values.items():
            filled = filled.replace(f"{{{name}}}", value)
        assert "{" not in filled, f"{path}: this test doesn't know what is in it"
        return filled, body

    def asked(self, client, method, path):
        filled, body = self.request_of(path)
        return client.request(method, filled, **({} if method == "GET" else {"json": body}))


@pytest.fixture
def whole(tmp_path):
    made = Whole(tmp_path)
    yield made
    made.checks.close()


def tried(app):
    """The routes that concern what somebody owns."""
    of_page = {("GET", "/tuning"), ("GET", "/tuning/{name}")}
    return [route for route in routes(app) if route not in HARMLESS | GENERAL | of_page]


def test_a_stranger_finds_nothing_by_any_route(whole):
    found = {}
    for method, path in tried(whole.app):
        answer = whole.asked(whole.bob, method, path)
        is_empty = answer.status_code == 200 and any(answer.json().get(key) == empty for key, empty in LISTS.items())
        if path == "/v1/models":
            is_empty = [model["id"] for model in answer.json()["data"]] == ["demo"]
        if answer.status_code != 404 and not is_empty:
            found[method, path] = answer.text[:200]
    assert not found and len(tried(whole.app)) >= 28
    assert whole.ada.get(f"/v1/files/{whole.file}").status_code == 200


def test_their_owner_finds_them(whole):
    """The same requests are answered to the owner: they are no 404 for another reason."""
    last = {"DELETE"}
    missing = [
        route
        for route in sorted(tried(whole.app), key=lambda route: route[0] in last)
        if whole.asked(whole.ada, *route).status_code == 404
    ]
    # the scripted run wrote nothing
    assert missing == [("GET", "/tuning/api/jobs/{id}/files/{name}")]
