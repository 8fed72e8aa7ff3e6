"""A base's hash is remembered, and never wrong."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from raytune_llm.models import folder_hash as hashes
from raytune_llm.models.folder_hash import folder_hash

LONG_AGO = 1_600_000_000
WEIGHTS = b"w" * 100


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base's folder whose files changed long ago by the test's clock, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes.time, "time_ns", lambda: 1 << 62)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes(b"{}")
    (base / "model.safetensors").write_bytes(WEIGHTS)
    (base / "tokenizer.json").write_bytes(b"not part of it")
    return base


def digest_of(config=b"{}", weights=WEIGHTS):
    text = b"config.json:%d:%smodel.safetensors:%d:%s" % (len(config), config, len(weights), weights)
    return hashlib.sha256(text).hexdigest()


def remembered(tmp_path):
    return list((tmp_path / "cache/raytune_llm/base_hashes").glob("*"))


def lie(tmp_path, text):
    """Put a text in place of what is remembered."""
    for file in remembered(tmp_path):
        file.write_text(text)


def test_the_hash_is_that_of_the_contents_and_is_read_back(folder, tmp_path):
    assert folder_hash(folder) == digest_of() and len(remembered(tmp_path)) == 1
    lie(tmp_path, "f" * 64)
    assert folder_hash(folder) == "f" * 64


@pytest.mark.parametrize("weights", [b"v" * 100, b"w" * 99])
def test_changed_weights_are_hashed_again_also_when_their_size_and_time_are_kept(folder, tmp_path, weights):
    file = folder / "model.safetensors"
    os.utime(file, (LONG_AGO, LONG_AGO))
    folder_hash(folder)
    lie(tmp_path, "f" * 64)
    file.write_bytes(weights)
    os.utime(file, (LONG_AGO, LONG_AGO))
    assert folder_hash(folder) == digest_of(weights=weights)


def test_an_added_file_is_hashed(folder, tmp_path):
    folder_hash(folder)
    lie(tmp_path, "f" * 64)
    (folder / "model-2.safetensors").write_bytes(b"more")
    assert folder_hash(folder) not in ("f" * 64, digest_of())


@pytest.mark.parametrize("text", ["", "f" * 63, "F" * 64, "f" * 65, "f" * 64 + "\n", "\udcff"])
def test_what_is_unreadable_is_computed_anew(folder, tmp_path, text):
    folder_hash(folder)
    for file in remembered(tmp_path):
        file.write_bytes(text.encode(errors="surrogateescape"))
    assert folder_hash(folder) == digest_of()
    assert remembered(tmp_path)[0].read_text() == digest_of()


def test_a_cache_that_cannot_be_written_does_no_harm(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert folder_hash(folder) == digest_of()


def test_files_that_have_just_changed_are_not_remembered(folder, tmp_path, monkeypatch):
    newest = max(file.stat().st_ctime_ns for file in folder.iterdir())
    monkeypatch.setattr(hashes.time, "time_ns", lambda: newest + 10**9)
    assert folder_hash(folder) == digest_of() and remembered(tmp_path) == []
    monkeypatch.setattr(hashes.time, "time_ns", lambda: newest + 3 * 10**9)
    assert folder_hash(folder) == digest_of() and len(remembered(tmp_path)) == 1


def test_weights_that_change_while_they_are_read_are_not_remembered(folder, tmp_path, monkeypatch):
    original = hashes._state
    calls = []

    def state(files):
        calls.append(files)
        if len(calls) == 2:
            (folder / "model.safetensors").write_bytes(b"x" * 100)
        return original(files)

    monkeypatch.setattr(hashes, "_state", state)
    folder_hash(folder)
    assert remembered(tmp_path) == []


def test_many_at_once_agree(folder, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(folder_hash, [folder] * 64)) == {digest_of()}
    assert [file.read_text() for file in remembered(tmp_path)] == [digest_of()]
