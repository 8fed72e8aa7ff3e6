"""One contract, two kinds of storage: a local folder and an object store (memory:// stands for all of them)."""

import hashlib
import json
import multiprocessing
import os
import threading
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import pytest

from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import Local, Remote, Storage, is_local, open_storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(
        str(tmp_path / "root") if request.param == "local" else f"memory://test-{uuid.uuid4().hex}/root"
    )


def test_the_root_decides_the_kind(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), Local)
    assert open_storage(f"file://{tmp_path}").root == str(tmp_path)
    assert isinstance(open_storage("memory://bucket/x/"), Remote)
    assert open_storage("memory://bucket/x/").root == "memory://bucket/x"
    assert is_local(f"file://{tmp_path}") and not is_local("s3://bucket/x")


def test_an_unknown_scheme_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"nosuch://x can't be opened: .*allowed: a local path, s3://"):
        open_storage("nosuch://x")


def test_write_read_replace(storage: Storage) -> None:
    assert not storage.exists("a/b.json")
    storage.write("a/b.json", b"one")
    storage.write("a/b.json", b"two")
    assert storage.read("a/b.json") == b"two"
    assert storage.exists("a/b.json") and not storage.exists("a")
    assert storage.files("a") == ["b.json"], "no temporary file is left"


def test_a_missing_file_is_a_file_not_found_error(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")


def test_a_copy_has_the_content_and_outlives_the_original(storage: Storage) -> None:
    storage.write("a/one", b"content")
    storage.copy("a/one", "b/deep/two")
    storage.write("a/one", b"changed")
    assert storage.read("b/deep/two") == b"content"
    storage.remove("a")
    assert storage.read("b/deep/two") == b"content"
    with pytest.raises(FileNotFoundError):
        storage.copy("nothing", "b/three")


def test_without_links_a_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    storage = open_storage(str(tmp_path))
    storage.write("one", b"content")
    monkeypatch.setattr(os, "link", refuse)
    storage.copy("one", "two")
    assert storage.read("two") == b"content"


def test_an_object_too_large_for_the_stores_own_copy_is_copied_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("The specified copy source is larger than the maximum allowable size")

    storage = open_storage(f"memory://test-{uuid.uuid4().hex}/root")
    storage.write("one", b"content")

    class WithoutCopy:
        copy_file = staticmethod(refuse)

        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

    original = storage._filesystem
    monkeypatch.setattr(storage, "_filesystem", WithoutCopy())
    storage.copy("one", "two")
    assert storage.read("two") == b"content"


def test_upload_and_download_return_the_digest(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(5 << 20))
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    assert storage.upload(source, "v1/deep/source.bin") == expected
    assert storage.digest("v1/deep/source.bin") == expected
    assert storage.download("v1/deep/source.bin", tmp_path / "back.bin") == expected
    assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()


def test_listings(storage: Storage) -> None:
    assert storage.folders("") == [] and storage.files("nowhere") == []
    for path in ("b/2", "a/x/1", "a/0", "top"):
        storage.write(path, b"x")
    assert storage.folders("") == ["a", "b"]
    assert storage.folders("a") == ["x"]
    assert storage.files("a") == ["0", "x/1"]


def test_a_claim_is_given_once(storage: Storage) -> None:
    assert storage.claim("name/v1")
    assert not storage.claim("name/v1")
    assert storage.folders("name") == ["v1"] and storage.files("name/v1") == []


def test_a_folder_that_already_holds_something_is_not_claimed(storage: Storage) -> None:
    storage.write("name/v1/card.json", b"{}")
    assert not storage.claim("name/v1")


def test_claims_at_the_same_moment_have_at_most_one_winner(storage: Storage) -> None:
    for attempt in range(20):
        won: list[bool] = []
        start = threading.Barrier(4)

        def claim(path: str = f"name/v{attempt}", start: threading.Barrier = start, won: list[bool] = won) -> None:
            start.wait()
            won.append(storage.claim(path))

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) <= 1
        assert isinstance(storage, Remote) or sum(won) == 1


def test_a_claim_seen_by_another_claimer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"memory://test-{uuid.uuid4().hex}")
    put = storage.write

    def put_next_to_another(path: str, content: bytes) -> None:
        put("name/v1/.claim-another", b"")
        put(path, content)

    monkeypatch.setattr(storage, "write", put_next_to_another)
    assert not storage.claim("name/v1")


def test_remove(storage: Storage) -> None:
    assert storage.claim("name/v1")
    storage.write("name/v1/a/b", b"x")
    storage.write("name/v2/a", b"x")
    storage.remove("name/v1")
    assert storage.files("name/v1") == []
    assert storage.files("name/v2") == ["a"]
    assert storage.claim("name/v1") == isinstance(storage, Local)


def _count_up(root: str) -> None:
    storage = open_storage(root)
    for _ in range(50):
        with storage.lock("count"):
            storage.write("count", str(int(storage.read("count")) + 1).encode())


def test_the_local_lock_loses_no_update_between_processes(tmp_path: Path) -> None:
    Local(str(tmp_path)).write("count", b"0")
    processes = [
        multiprocessing.get_context("spawn").Process(target=_count_up, args=(str(tmp_path),)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "100"


def test_a_failed_local_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Local(str(tmp_path))
    storage.write("aliases.json", b"old")

    def fail(_: int) -> None:
        raise OSError(5, "disk failed")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk failed"):
        storage.write("aliases.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["aliases.json"]
    assert storage.read("aliases.json") == b"old"


def test_a_reader_sees_the_old_or_the_new_content(tmp_path: Path) -> None:
    storage = Local(str(tmp_path))
    contents = [bytes([letter]) * (1 << 20) for letter in b"ab"]
    storage.write("file", contents[0])
    done = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not done.is_set():
            if (content := storage.read("file")) not in contents:
                torn.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(100):
        storage.write("file", contents[turn % 2])
    done.set()
    reader.join()
    assert torn == []


class Colour(Enum):
    red = "r"


def test_json_text_is_valid_for_any_config() -> None:
    value = {
        "nan": float("nan"),
        "inf": [float("inf"), float("-inf")],
        "enum": Colour.red,
        "path": Path("/x"),
        "tuple": (1, None),
    }
    back = json.loads(to_json(value))
    assert back == {
        "nan": "NaN",
        "inf": ["Infinity", "-Infinity"],
        "enum": "r",
        "path": "/x",
        "tuple": [1, None],
    }
    assert [float(text) for text in back["inf"]] == [float("inf"), float("-inf")]
    for stranger in (object(), Colour, ValueError("x")):
        with pytest.raises(TypeError):
            to_json({"stranger": stranger})


@dataclass(frozen=True)
class Point:
    x: float
    colour: Colour


def test_json_text_of_dataclasses_mappings_and_text_is_plain() -> None:
    value = {1: MappingProxyType({"p": Point(0.1, Colour.red)}), "path": PurePosixPath("a/b"), "ü": "é ☃"}
    assert json.loads(to_json(value)) == {"1": {"p": {"x": 0.1, "colour": "r"}}, "path": "a/b", "ü": "é ☃"}
    assert "é ☃" in to_json(value)
    assert to_json({"a": [1]}, indent=2) == '{\n  "a": [\n    1\n  ]\n}'
