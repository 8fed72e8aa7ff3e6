"""The page's routes: its own files without a key, data for the owner alone, checks one at a time."""

import json
import threading
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from page_world import BAD_LINE, World, fill, running, succeeded, sweep_trials

from raytune_llm.service.api.check_report import findings_of_text, renamed, shown
from raytune_llm.service.api.curves import SHOWN_POINTS, best_of, curves, main_metric, progress
from raytune_llm.service.api.page import ASSETS, OPEN_PATHS
from raytune_llm.service.records import State
from raytune_llm.service.run_files import Point, Trial

KEY = {"authorization": "Bearer mine"}
OTHER = {"authorization": "Bearer other"}
GOOD, BAD = b'{"a": 1}\n' * 20, f'{{"a": 1}}\n{BAD_LINE}\n{{}}\n{BAD_LINE}\n'.encode()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home", key="mine")
    yield made
    made.is_check_held = False
    made.checks.close()


@pytest.fixture
def client(world):
    with TestClient(world.app) as opened:
        yield opened


def test_the_pages_files_need_no_key_and_hold_no_data(client, world):
    jobs = fill(world)
    for path in OPEN_PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert not any(job.request.id in answer.text for job in jobs.values()) and "support-tone" not in answer.text
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


def test_every_module_that_the_page_imports_is_served(client):
    for name in ASSETS:
        text = client.get(f"/tuning/{name}").text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
        if name.endswith(".js"):
            assert "innerHTML" not in text and "insertAdjacentHTML" not in text
            imported = {line.split('"./')[1].split('"')[0] for line in text.splitlines() if ' from "./' in line}
            assert imported <= set(ASSETS)
    assert "<style" not in client.get("/tuning").text and "style=" not in client.get("/tuning").text


@pytest.mark.parametrize("name", ["__init__.py", "..%2fpage%2f__init__.py", "%2e%2e", "secret.js", "style.css%00"])
def test_nothing_else_is_served(client, name):
    assert client.get(f"/tuning/{name}", headers=KEY).status_code == 404


def test_data_need_a_key(client, world):
    job = running(world)
    for path in ("service", "jobs", f"jobs/{job.request.id}", f"jobs/{job.request.id}/files/report.html", "checks/x"):
        assert client.get(f"/tuning/api/{path}").status_code == 401
    assert client.post("/tuning/api/checks", json={}).status_code == 401


def test_another_owners_ids_are_as_if_they_did_not_exist(client, world):
    job = succeeded(world, "support", 60, is_named=True)
    file = world.upload("mine.jsonl", GOOD)
    wanted = {"file": file.id, "model": "demo", "method": "supervised"}
    check = client.post("/tuning/api/checks", json=wanted, headers=KEY).json()["id"]
    paths = [f"jobs/{job.request.id}", f"jobs/{job.request.id}/files/report.html", f"checks/{check}"]
    for path in paths:
        assert client.get(f"/tuning/api/{path}", headers=KEY).status_code == 200
        missing = client.get(
            f"/tuning/api/{path.replace(job.request.id, 'ftjob-0').replace(check, 'x')}", headers=OTHER
        )
        refused = client.get(f"/tuning/api/{path}", headers=OTHER)
        assert refused.status_code == missing.status_code == 404 and refused.json() == missing.json()
    assert client.post("/tuning/api/checks", json=wanted, headers=OTHER).status_code == 404
    assert client.post(f"/tuning/api/checks/{check}/estimate", json={}, headers=OTHER).status_code == 404
    assert client.get("/tuning/api/jobs", headers=OTHER).json()["jobs"] == []
    assert client.get("/tuning/api/service", headers=OTHER).json()["usage"]["device_hours"] == 0


def test_the_list_says_how_far_each_job_is(client, world):
    jobs = fill(world)
    found = {one["id"]: one for one in client.get("/tuning/api/jobs", headers=KEY).json()["jobs"]}
    of = {name: found[job.request.id] for name, job in jobs.items()}
    assert {name: one["state"] for name, one in of.items()} == {
        "validating": "validating_files",
        "queued": "queued",
        "running": "running",
        "paused": "paused",
        "succeeded": "succeeded",
        "unnamed": "succeeded",
        "failed": "failed",
        "cancelled": "cancelled",
    }
    assert of["queued"]["place"] == 3
    assert 0 < of["running"]["progress"] < 1 and of["running"]["seconds_left"] > 0
    assert of["running"]["best"]["metric"] == "eval/loss" and of["running"]["best"]["is_falling"]
    assert of["succeeded"]["fine_tuned_model"] == "support@3" and of["unnamed"]["fine_tuned_model"] is None
    assert ":208:" in of["failed"]["error"]["message"]
    assert (of["succeeded"]["best"]["metric"], of["succeeded"]["best"]["value"]) == ("eval/accuracy", 0.977)
    usage = client.get("/tuning/api/service", headers=KEY).json()["usage"]
    assert (usage["running"], usage["waiting"], usage["device_hours_limit"]) == (1, 2, 10.0)


def test_the_list_comes_in_parts(client, world):
    for minutes in range(53):
        world.add(State.cancelled, f"job{minutes}", minutes)
    first = client.get("/tuning/api/jobs", headers=KEY).json()
    rest = client.get("/tuning/api/jobs", params={"after": first["jobs"][-1]["id"]}, headers=KEY).json()
    assert len(first["jobs"]) == 50 and first["has_more"]
    assert [one["name"] for one in rest["jobs"]] == [f"job{i}-{world.owner[:8]}" for i in (50, 51, 52)]
    assert not rest["has_more"]


def test_a_jobs_detail_has_what_it_came_to(client, world):
    job = succeeded(world, "support", 60, is_named=True)
    path = f"/tuning/api/jobs/{job.request.id}"
    answer = client.get(path, headers=KEY)
    found = answer.json()
    assert (
        found["command"].startswith("raytune-llm sweep home=")
        and "'sweep.space.tuning.steps=[100,200]'" in found["command"]
    )
    assert found["metric"] == "eval/loss" and found["winner"] == "7ede0_00002" and len(found["trials"]) == 9
    assert found["leaderboard"][0]["trial"] == "7ede0_00002" and found["result"]["is_named"]
    assert found["training_file"]["filename"] == "support.jsonl"
    assert set(found["files"]) == {"report.html", "report.json", "evaluation-eval.md", "leaderboard.csv"}
    tag = answer.headers["etag"]
    assert client.get(path, headers=KEY | {"if-none-match": tag}).status_code == 304


def test_a_running_jobs_curves_move(client, world, monkeypatch):
    monkeypatch.setattr("raytune_llm.service.api.page_jobs.FRESH_SECONDS", 0.0)
    job = running(world, 60)
    path = f"/tuning/api/jobs/{job.request.id}"
    before = client.get(path, headers=KEY)
    world.runs[job.request.id].shown = sweep_trials(150)
    after = client.get(path, headers=KEY | {"if-none-match": before.headers["etag"]})
    assert after.status_code == 200 and after.json()["progress"] > before.json()["progress"]


@pytest.mark.parametrize("name", ["../request.json", "request.json", "status.json", "content.jsonl", "report.html%00"])
def test_only_known_files_of_a_job_are_served(client, world, name):
    job = succeeded(world, "support", 60, is_named=True)
    assert client.get(f"/tuning/api/jobs/{job.request.id}/files/{name}", headers=KEY).status_code == 404


def test_a_report_is_shown_without_rights(client, world):
    job = succeeded(world, "support", 60, is_named=True)
    answer = client.get(f"/tuning/api/jobs/{job.request.id}/files/report.html", headers=KEY)
    assert answer.headers["content-type"].startswith("text/html") and "Data check" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "script" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


def test_the_runs_own_report_has_a_name_of_its_own(client, world):
    job = succeeded(world, "support", 60, is_named=True)
    path = f"/tuning/api/jobs/{job.request.id}"
    assert "run-report.html" not in client.get(path, headers=KEY).json()["files"]
    location = job.request.training.location
    world.runs[job.request.id].files = {"report.html": f"<p>Sweep report of {location}</p>".encode()}
    assert "run-report.html" in client.get(path, headers=KEY).json()["files"]
    answer = client.get(f"{path}/files/run-report.html", headers=KEY)
    assert "Sweep report of" in answer.text and location not in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox;")


def test_a_report_names_the_clients_files_and_no_folders():
    page = b"<p>/srv/a &amp; b/files/file-1/content.jsonl:3</p><p>s3://x/own.csv</p>"
    names = {"/srv/a & b/files/file-1/content.jsonl": "<i>my file</i>.jsonl", "s3://x/own.csv": "own.csv"}
    assert renamed(page, names) == b"<p>&lt;i&gt;my file&lt;/i&gt;.jsonl:3</p><p>own.csv</p>"


def ended(client, id):
    """A check when it has ended."""
    while (found := client.get(f"/tuning/api/checks/{id}", headers=KEY).json())["state"] in ("waiting", "running"):
        threading.Event().wait(0.01)
    return found


def check(client, world, content, name="train.jsonl", **fields):
    file = world.upload(name, content)
    wanted = {"file": file.id, "model": "demo", "method": "supervised", **fields}
    answer = client.post("/tuning/api/checks", json=wanted, headers=KEY)
    assert answer.status_code == 202
    return answer.json()["id"]


def test_a_check_names_the_clients_file_and_no_folder(client, world, tmp_path):
    id = check(client, world, GOOD, "</b>/etc/weird.jsonl")
    found = ended(client, id)
    report = found["report"]
    assert report["verdict"] == "usable, with 1 warning" and report["splits"]["train"]["num_records"] == 20
    assert report["findings"][0]["places"][0]["where"] == "</b>/etc/weird.jsonl:17"
    assert str(tmp_path) not in json.dumps(found)
    estimate = client.post(f"/tuning/api/checks/{id}/estimate", json={"hyperparameters": {"n_epochs": 2}}, headers=KEY)
    assert estimate.json()["tokens"] == 2 * 2 * 30 * 20 and estimate.json()["trials"] == 1
    refused = client.post(f"/tuning/api/checks/{id}/estimate", json={"hyperparameters": {"n_epochs": 99}}, headers=KEY)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n_epochs"


def test_a_file_that_cannot_be_read_is_a_problem_for_each_line(client, world, tmp_path):
    id = check(client, world, BAD)
    report = ended(client, id)["report"]
    places = [finding["places"][0]["where"] for finding in report["findings"]]
    assert places == ["train.jsonl:2", "train.jsonl:4"]
    assert {finding["severity"] for finding in report["findings"]} == {"problem"}
    assert report["verdict"] == "not usable: 2 problems in the data" and str(tmp_path) not in json.dumps(report)
    assert client.post(f"/tuning/api/checks/{id}/estimate", json={}, headers=KEY).status_code == 409


def test_an_owners_new_check_ends_the_earlier_one(client, world):
    world.is_check_held = True
    first, second = check(client, world, GOOD), check(client, world, BAD)
    assert "later check" in ended(client, first)["report"]["findings"][0]["text"]
    world.is_check_held = False
    assert ended(client, second)["report"]["verdict"].startswith("not usable")


def test_a_check_that_is_replaced_while_it_waits_holds_no_place(client, world, monkeypatch):
    monkeypatch.setattr("raytune_llm.service.api.page_checks.MOST_WAITING", 1)
    world.is_check_held = True
    checks = [check(client, world, GOOD) for _ in range(4)]
    world.is_check_held = False
    for replaced in checks[:-1]:
        assert "later check" in ended(client, replaced)["report"]["findings"][0]["text"]
    assert "later check" not in str(ended(client, checks[-1]))


@pytest.mark.parametrize(
    "wrong, status",
    [
        ({"file": "file-000000000000000000000000"}, 404),
        ({"file": "../../etc/passwd"}, 404),
        ({"model": "gpt-9"}, 404),
        ({"method": "sft"}, 400),
        ({"validation_file": "file-1"}, 404),
        ({"_target_": "os.system"}, 422),
    ],
)
def test_what_is_not_there_is_not_checked(client, world, wrong, status):
    file = world.upload("train.jsonl", GOOD)
    wanted = {"file": file.id, "model": "demo", "method": "supervised", **wrong}
    assert client.post("/tuning/api/checks", json=wanted, headers=KEY).status_code == status


def test_a_check_that_takes_too_long_is_ended(client, world, monkeypatch):
    monkeypatch.setattr("raytune_llm.service.api.page_checks.TIMEOUT_SECONDS", 0.0)
    world.is_check_held = True
    found = ended(client, check(client, world, GOOD))
    assert "longer than" in found["report"]["findings"][0]["text"]


def test_long_curves_are_thinned_and_keep_their_ends():
    points = [Point(step=i, time=i, metrics={"train/loss": 1 / (i + 1), "time/seconds": 1}) for i in range(5000)]
    trials = [Trial(id=str(i), values={}, points=points) for i in range(64)]
    found = curves(trials)
    lines = [trial["points"]["train/loss"] for trial in found]
    assert sum(map(len, lines)) <= SHOWN_POINTS
    assert all(line[0] == (0, 1.0) and line[-1][0] == 4999 for line in lines)
    assert set(found[0]["points"]) == {"train/loss"}


def test_what_is_not_finite_is_not_drawn():
    points = [Point(step=i, time=i, metrics={"eval/loss": value}) for i, value in enumerate((float("nan"), 1.0, 2.0))]
    trials = [Trial(id="a", values={}, points=points)]
    assert curves(trials)[0]["points"]["eval/loss"] == [(1, 1.0), (2, 2.0)]
    assert best_of(trials) == {"metric": "eval/loss", "value": 1.0, "trial": "a", "step": 1, "is_falling": True}


def test_accuracy_selects_where_trials_answer():
    point = Point(step=1, time=1, metrics={"eval/loss": 0.5, "eval/accuracy": 0.9})
    better = replace(point, metrics={"eval/loss": 0.7, "eval/accuracy": 0.95})
    trials = [Trial(id="a", values={}, points=[point]), Trial(id="b", values={}, points=[better])]
    assert main_metric(trials) == "eval/accuracy" and best_of(trials)["trial"] == "b"


def test_progress_is_unknown_without_steps(world):
    job = running(world, 60)
    status = replace(job.status, command=("raytune-llm", "train"))
    assert progress(sweep_trials(60), status) is None and progress([], job.status) is None


def test_two_files_are_distinguished_by_split(world):
    train, other = world.upload("train.jsonl", GOOD), world.upload("eval.jsonl", GOOD)
    text = f"error: 1 problem in the data:\n  {other.location}:3: prompt: found nothing\n"
    found = findings_of_text(text, {"train": train, "eval": other})
    assert found["findings"][0]["places"] == [{"where": "eval.jsonl:3", "excerpt": ""}]
    finding = {"severity": "note", "kind": "x", "split": "eval", "text": "content.jsonl:1 is short", "places": []}
    report = {"verdict": "sound", "max_tokens": 1, "carved": False, "splits": {}, "notes": [], "previews": []}
    named = shown({**report, "findings": [finding]}, {"train": train, "eval": other})
    assert named["findings"][0]["text"] == "eval.jsonl:1 is short"
