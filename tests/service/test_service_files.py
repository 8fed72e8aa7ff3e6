"""/v1/files: uploads in pieces, pages, content, deletion, and what is refused."""

import hashlib
import json
import threading
from pathlib import Path

import pytest
from service_world import CHAT, KEYS, World, error, upload

from raytune_llm.service.api import bounds, files
from raytune_llm.service.api.uploads import extension_of
from raytune_llm.service.records import new_id


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "home")


def test_a_file_from_upload_to_deletion(world):
    answer = upload(world.client, CHAT * 2 + CHAT.rstrip(), name="C:\\data\\the best né.jsonl")
    assert answer.status_code == 200
    file = answer.json()
    assert file["filename"] == "the best né.jsonl" and file["bytes"] == 3 * len(CHAT) - 1
    assert (file["object"], file["purpose"], file["status"]) == ("file", "fine-tune", "processed")
    stored = world.backend.store.file(file["id"])
    assert stored.num_lines == 3 and stored.sha256 == hashlib.sha256(CHAT * 2 + CHAT.rstrip()).hexdigest()
    assert Path(stored.location).name == "content.jsonl" and stored.owner == "local"
    assert world.client.get(f"/v1/files/{file['id']}").json() == file
    content = world.client.get(f"/v1/files/{file['id']}/content")
    assert content.content == CHAT * 2 + CHAT.rstrip()
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''the%20best%20n%C3%A9.jsonl"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert world.client.delete(f"/v1/files/{file['id']}").json() == {
        "id": file["id"],
        "object": "file",
        "deleted": True,
    }
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        error(world.client.get(path), 404, "not_found", "file_id")
    assert not Path(stored.location).exists()


def test_content_comes_in_pieces_from_a_remote_store(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    world = World(f"memory://{tmp_path.name}/home")
    id = upload(world.client, CHAT * 50).json()["id"]
    with world.client.stream("GET", f"/v1/files/{id}/content") as answer:
        assert b"".join(answer.iter_bytes()) == CHAT * 50
    assert world.client.delete(f"/v1/files/{id}").status_code == 200
    assert world.client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.jsonl", ".jsonl"),
        ("A.CSV", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.json.gz", ".json.gz"),
        ("a.txt", ".jsonl"),
        ("a", ".jsonl"),
        (".jsonl", ".jsonl"),
        ("a.sh.gz", ".jsonl"),
        ("a.jsonl/../../x.py", ".jsonl"),
    ],
)
def test_only_known_extensions_are_kept(name, extension):
    assert extension_of(name) == extension


def test_pages_of_files(world):
    ids = [upload(world.client, name=f"{i}.csv").json()["id"] for i in range(5)]
    known = [file.id for file in world.backend.store.files()]  # files of the same second are in the order of their ids
    assert sorted(known) == sorted(ids)
    every = world.client.get("/v1/files").json()
    assert [file["id"] for file in every["data"]] == known[::-1] and every["has_more"] is False
    assert (every["object"], every["first_id"], every["last_id"]) == ("list", known[-1], known[0])
    first = world.client.get("/v1/files", params={"order": "asc", "limit": 3}).json()
    assert [file["id"] for file in first["data"]] == known[:3] and first["has_more"] is True
    rest = world.client.get("/v1/files", params={"order": "asc", "after": first["last_id"]}).json()
    assert [file["id"] for file in rest["data"]] == known[3:] and rest["has_more"] is False
    assert world.client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"] == []
    assert "10000" in error(world.client.get("/v1/files", params={"limit": 10_001}), 400, param="limit")
    error(world.client.get("/v1/files", params={"after": "file-x"}), 400, "invalid_value", "after")
    error(world.client.get("/v1/files", params={"order": "up"}), 400, "invalid_value", "order")


def test_what_is_no_upload_of_training_data_is_refused(world):
    assert "allowed: fine-tune" in error(upload(world.client, purpose="assistants"), 400, "invalid_value", "purpose")
    assert "empty" in error(upload(world.client, b""), 400, "invalid_value", "file")
    error(upload(world.client, name="x" * 300), 400, "invalid_value", "file")
    post = world.client.post
    error(post("/v1/files", json={"file": "x"}), 400, "invalid_value", "file")
    error(post("/v1/files", data={"file": "x", "purpose": "fine-tune"}), 400, "invalid_value", "file")
    unprintable = b"".join(multipart([CHAT])).replace(b"a.jsonl", b"a\x07.jsonl")
    error(post("/v1/files", content=unprintable, headers=MULTIPART), 400, "invalid_value", "file")
    both = {"file": ("a.jsonl", CHAT)}
    error(post("/v1/files", files=both), 400, "missing_required_parameter", "purpose")
    fields = {"purpose": (None, "fine-tune")}
    error(post("/v1/files", files=fields), 400, "missing_required_parameter", "file")
    expires = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert "kept until" in error(post("/v1/files", files=both, data=expires), 400, param="expires_after")
    error(post("/v1/files", files=both, data={"purpose": "fine-tune", "x": "1"}), 400, "unknown_parameter", "x")
    several = [("file", ("a.jsonl", CHAT)), ("file", ("b.jsonl", CHAT))]
    error(post("/v1/files", files=several, data={"purpose": "fine-tune"}), 400)
    error(post("/v1/files", content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}), 400)
    error(post("/v1/files", content=b"--x\r\n", headers={"content-type": "multipart/form-data"}), 400)
    assert world.backend.store.files() == []


MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


def multipart(content):
    """A form's body in pieces, whose length is not announced."""
    yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    yield from content
    yield b"\r\n--b--\r\n"


def test_files_that_are_too_large_are_refused_with_and_without_their_length(world):
    announced = upload(world.client, b"x" * 300_000)
    assert "200000 bytes" in error(announced, 413, "request_too_large", "file")
    assert announced.headers["connection"] == "close"
    refused = world.client.post("/v1/files", content=multipart([b"x" * 10_000] * 40), headers=MULTIPART)
    assert "service.max_file_bytes" in error(refused, 413, "request_too_large", "file")
    assert error(upload(world.client, b"x" * 200_001), 413)  # within what the form may have in addition
    assert upload(world.client, b"x" * 200_000).status_code == 200
    pieces = multipart([CHAT] * 10)
    assert world.client.post("/v1/files", content=pieces, headers=MULTIPART).json()["bytes"] == 10 * len(CHAT)


def test_a_key_keeps_as_much_as_it_may(tmp_path):
    world = World(tmp_path, keys=KEYS, max_stored_bytes_per_key=10_000)
    ada, bob = map(world.client_of, KEYS)
    first = upload(ada, b"x" * 6000).json()
    message = error(upload(ada, b"x" * 4001), 400, "insufficient_quota", "file")
    assert "6000 of 10000 bytes" in message
    assert upload(bob, b"x" * 9000).status_code == 200
    assert ada.delete(f"/v1/files/{first['id']}").status_code == 200
    assert upload(ada, b"x" * 9000).status_code == 200


def test_uploads_at_the_same_time_share_what_is_left(tmp_path, monkeypatch):
    world = World(tmp_path, max_stored_bytes_per_key=10_000)
    add, entered, may_end = world.backend.store.add_file, threading.Event(), threading.Event()

    def slow(file, content):
        entered.set()
        assert may_end.wait(30)
        add(file, content)

    monkeypatch.setattr(world.backend.store, "add_file", slow)
    answers = []
    first = threading.Thread(target=lambda: answers.append(upload(world.client_of(None), b"x" * 6000)))
    first.start()
    assert entered.wait(30)
    error(upload(world.client, b"x" * 6000), 400, "insufficient_quota")
    may_end.set()
    first.join()
    assert answers[0].status_code == 200
    assert upload(world.client, b"x" * 4000).status_code == 200


def test_a_full_disk_leaves_nothing_of_a_file(world, monkeypatch):
    def full(source, path):
        Path(world.backend.store.home, path).parent.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.backend.store._storage, "upload", full)
    error(upload(world.client), 507, "insufficient_storage")
    assert list(Path(world.backend.store.home, "service/files").iterdir()) == []


def test_a_key_has_so_many_uploads_at_a_time(world, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UPLOADS", 0)
    error(upload(world.client), 429, "too_many_uploads")


def test_a_file_that_a_job_needs_stays(world):
    train, valid, free = (upload(world.client, name=f"{i}.jsonl").json()["id"] for i in range(3))
    body = {"model": "demo", "training_file": train, "validation_file": valid}
    job = world.client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    for id in (train, valid):
        assert job in error(world.client.delete(f"/v1/files/{id}"), 409, "file_in_use", "file_id")
    assert world.client.delete(f"/v1/files/{free}").status_code == 200
    world.controller.succeed(job)
    assert world.client.delete(f"/v1/files/{train}").json()["deleted"] is True
    assert world.client.get(f"/v1/fine_tuning/jobs/{job}").json()["training_file"] == train


@pytest.mark.parametrize("id", ["..", "%2e%2e", "file-..%2f..", "file-" + "0" * 24, "ftjob-" + "0" * 24, "file-é"])
def test_ids_that_name_nothing_are_404(world, id):
    for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
        assert world.client.get(path).status_code == 404
    assert json.loads(world.client.get(f"/v1/files/{id}/content").text)["error"]["code"] == "not_found"


def test_a_full_disk_of_temporary_files_is_as_well_an_answer(world, monkeypatch):
    def full(*args, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raytune_llm.service.api.uploads.tempfile.NamedTemporaryFile", full)
    error(upload(world.client), 507, "insufficient_storage")


@pytest.mark.parametrize("home", ["{}/home", "memory://{}/partial"])
def test_what_a_killed_service_left_of_an_upload_goes(tmp_path, home):
    world = World(home.format(tmp_path))
    kept, store, partial = upload(world.client).json()["id"], world.backend.store, new_id("file")
    store._storage.write(f"service/files/{partial}/content.jsonl", CHAT)
    store.delete_partial_files()
    assert [file.id for file in store.files()] == [kept] and store.content(store.file(kept)) == CHAT * 3
    assert store._storage.files(f"service/files/{partial}") == []


def test_a_files_facts_are_read_once(world, monkeypatch):
    ids = [upload(world.client).json()["id"] for _ in range(2)]
    store, reads = world.backend.store, []
    read = store._storage.read
    monkeypatch.setattr(store._storage, "read", lambda path: reads.append(path) or read(path))
    for _ in range(2):
        assert {file["id"] for file in world.client.get("/v1/files").json()["data"]} == set(ids)
    assert len(reads) == len(set(reads))
    world.client.delete(f"/v1/files/{ids[0]}")
    assert [file["id"] for file in world.client.get("/v1/files").json()["data"]] == ids[1:]
    error(world.client.get(f"/v1/files/{ids[0]}"), 404, "not_found", "file_id")
