"""What holds for every route: the OpenAPI page is right, and nobody sees what is another's."""

import pytest
from authorisation import HARMLESS, OWN, leaks, request_of, routes
from service_world import KEYS, World, error, upload

JOBS = "/v1/fine_tuning/jobs"
HERE = {"host": "127.0.0.1"}


@pytest.fixture
def owned(tmp_path):
    """A world, and what ada owns in it."""
    world = World(tmp_path / "home", keys=KEYS)
    ada = world.client_of(KEYS[0])
    file = upload(ada).json()["id"]
    job = ada.post(JOBS, json={"model": "demo", "training_file": file}).json()["id"]
    world.controller.succeed(job)
    return world, {"file": file, "job": job, "project": "p", "location": "l"}


def test_no_route_shows_or_changes_what_is_anothers(owned):
    world, names = owned
    ada, bob = map(world.client_of, KEYS)
    before = [ada.get(path).json() for path in ("/v1/files", JOBS)]
    tried = [route for route in routes(world.app) if route not in HARMLESS | OWN]
    assert len(tried) >= 18
    assert [found for route in tried if (found := leaks(bob, *route, names))] == []
    assert [ada.get(path).json() for path in ("/v1/files", JOBS)] == before
    assert world.controller.jobs(names["job"]) == [] and len(before[1]["data"]) == 1


def test_the_check_itself_finds_what_its_owner_may_see(owned):
    """The same requests with the owner's key are answered: they are no 404 for another reason."""
    world, names = owned
    ada = world.client_of(KEYS[0])
    tried = sorted(set(routes(world.app)) - HARMLESS - OWN, key=lambda route: route[0] == "DELETE")
    assert [route for route in tried if leaks(ada, *route, names) is None] == []


def test_another_owners_is_answered_as_what_does_not_exist(owned):
    world, names = owned
    bob = world.client_of(KEYS[1])
    nothing = {**names, "file": "file-" + "0" * 24, "job": "ftjob-" + "0" * 24}
    for method, path in routes(world.app):
        if (method, path) in HARMLESS | OWN or ("_id}" not in path and method == "GET"):
            continue
        answers = []
        for ids in (names, nothing):
            filled, body = request_of(path, ids)
            answer = bob.request(method, filled, **({"json": body} if method == "POST" else {}))
            answers.append((answer.status_code, answer.text.replace(ids["file"], "").replace(ids["job"], "")))
        assert answers[0] == answers[1], path


def test_every_route_needs_a_key(owned):
    world, names = owned
    for method, path in routes(world.app):
        if path != "/healthz":
            filled, _ = request_of(path, names)
            assert world.client.request(method, filled).status_code in (401, 429), path


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example.org:8080"},
        {"origin": "https://example.org"},
        {"origin": "http://127.0.0.1:9"},
        {"origin": "null"},
        {"host": "[::1"},
    ],
)
def test_without_keys_pages_of_other_sites_are_refused(tmp_path, headers):
    world = World(tmp_path)
    assert upload(world.client).status_code == 200
    for method, path in (("GET", "/v1/files"), ("POST", f"{JOBS}/ftjob-{'0' * 24}/cancel"), ("GET", "/healthz")):
        error(world.client.request(method, path, headers=headers), 403, "forbidden_origin")
    own = {"host": "localhost:8080", "origin": "http://localhost:8080"}
    assert world.client.get("/v1/files", headers=own).status_code == 200


def test_paths_that_are_open_hold_for_reading_alone(tmp_path):
    from fastapi import APIRouter

    page = APIRouter()

    @page.api_route("/tuning", methods=["GET", "POST"])
    @page.api_route("/tuning/static/{name}", methods=["GET", "POST"])
    @page.get("/tuning-data")
    async def shown(name: str = ""):
        return {"page": name}

    world = World(tmp_path, keys=KEYS, more=(page,), open_paths=("/tuning", "/tuning/static/"))
    assert world.client.get("/tuning").json() == {"page": ""}
    assert world.client.get("/tuning/static/x.js").json() == {"page": "x.js"}
    assert world.client.head("/tuning").status_code == 405
    for method, path in (("POST", "/tuning"), ("POST", "/tuning/static/x.js"), ("GET", "/tuning-data")):
        error(world.client.request(method, path), 401)
    error(world.client.get("/tuning/static/../../v1/files"), 401)
    error(world.client.get("/tuning/static/..%2f..%2fv1/files"), 404)


def test_the_openapi_page_holds_for_generated_requests(tmp_path):
    """Whatever is sent, the answer is one that the page has, and no server error."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    world = World(tmp_path)
    file = upload(world.client).json()["id"]
    job = world.client.post(JOBS, json={"model": "demo", "training_file": file}).json()["id"]
    world.controller.succeed(job)
    real = {"file_id": file, "job_id": job, "project": "p", "location": "l"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.app, headers=HERE)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/files", JOBS, f"{JOBS}/{{job_id}}/events"}
    checks = (content_type_conformance, response_schema_conformance, status_code_conformance)
    for operation in operations:
        if operation.path.startswith("/v1beta1") or operation.method == "delete":
            continue  # the same routes as below /v1; what others read here

        @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), is_real=st.booleans())
        def check(case, is_real):
            if is_real:
                case.path_parameters = {name: real[name] for name in case.path_parameters or {}}
            response = case.call(headers=HERE)
            assert response.status_code < 500, response.text
            assert response.status_code < 400 or set(response.json()) == {"error"}
            case.validate_response(response, checks=checks)

        check()
