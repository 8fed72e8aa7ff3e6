"""Every route of an app, tried by somebody who owns nothing that exists."""

from fastapi.routing import iter_route_contexts

IDS = {"file_id": "file", "job_id": "job", "project": "project", "location": "location"}
"""What of a world stands for each parameter of a path; a route with another parameter has to be added here."""
EMPTY = {"data": [], "tuningJobs": []}
"""Lists, by the field that has their items."""
HARMLESS = {
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
}
"""Routes that hold nobody's data."""
OWN = {("POST", "/v1/files"), ("GET", "/v1/fine_tuning/usage")}
"""Routes that name nothing, and concern whoever asks; each has a test of its own."""


def routes(app):
    """Method and path of each route, HEAD left out."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods - {"HEAD"}):
            yield method, route.path


def request_of(path, world):
    """The path and body with what belongs to another."""
    for name, kind in IDS.items():
        path = path.replace(f"{{{name}}}", world[kind])
    assert "{" not in path, f"{path}: authorisation.IDS doesn't know this parameter"
    google = {"baseModel": "demo", "supervisedTuningSpec": {"trainingDatasetUri": world["file"]}}
    ours = {"model": "demo", "training_file": world["file"]}
    return path, google if "/projects/" in path else ours


def leaks(client, method, path, world):
    """What is wrong with the answer to a stranger, or None."""
    filled, body = request_of(path, world)
    answer = client.request(method, filled, **({"json": body} if method != "GET" else {}))
    if answer.status_code == 404:
        return None
    if answer.status_code == 200 and "{file_id}" not in path and "{job_id}" not in path:
        found = answer.json()
        if any(name in found and found[name] == [] for name in EMPTY):
            return None
    return f"{method} {path}: {answer.status_code} {answer.text[:200]}"
