"""Which files a location names, and why one can't be opened."""

import pytest

from raytune_llm.data.reading.sources import Source, Unreadable, check_hub_name, expand, format_of, sources, why_missing
from raytune_llm.errors import InputError


def test_one_location_or_a_list_with_weights():
    assert sources(None, "data.eval") == []
    assert sources("a.jsonl", "data.train") == [Source("a.jsonl")]
    assert sources(["a.jsonl", {"path": "b.csv", "weight": 2}, {"path": "c"}], "data.train") == [
        Source("a.jsonl"),
        Source("b.csv", 2.0, place=1),
        Source("c", place=2),
    ]


REFUSED = {
    "number": (3, "data.train=3 is not allowed; allowed: a location, or {path: a location, weight: a number above 0}"),
    "blank": ([" "], "data.train[0]=' ' is not allowed; allowed: a location or null"),
    "path": ([{"weight": 2}], "data.train[0]={'weight': 2} is not allowed; allowed: a location, or {path: a location"),
    "null": ([None], "data.train[0]=None is not allowed"),
    "no_text": ([{"path": 3}], "data.train[0].path=3 is not allowed; allowed: a location"),
    "negative": ([{"path": "a", "weight": -1}], "data.train[0].weight=-1 is not allowed; allowed: a number above 0"),
    "true": ([{"path": "a", "weight": True}], "data.train[0].weight=True is not allowed"),
    "nan": ([{"path": "a", "weight": float("nan")}], "data.train[0].weight=nan is not allowed"),
    "huge": ([{"path": "a", "weight": 1e9}], "data.train[0].weight=1000000000.0 is not allowed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_forms_are_refused(name):
    given, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        sources(given, "data.train")
    assert str(caught.value).startswith(message)


def test_folders_and_patterns_give_their_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.csv", "c.jsonl.gz", "notes.md", "d.parquet", ".hidden.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.jsonl").touch()
    found = [file.path.removeprefix(f"{tmp_path}/") for file in expand(Source(str(tmp_path), 2.0))]
    assert found == ["a.csv", "b.jsonl", "c.jsonl.gz", "d.parquet"]
    assert {file.weight for file in expand(Source(str(tmp_path), 2.0))} == {2.0}
    assert [file.path for file in expand(Source(f"{tmp_path}/*.jsonl"))] == [f"{tmp_path}/b.jsonl"]
    assert [file.path for file in expand(Source(f"{tmp_path}/**/e.jsonl"))] == [f"{tmp_path}/deep/e.jsonl"]
    assert expand(Source(f"{tmp_path}/*.tsv")) == [Unreadable(f"{tmp_path}/*.tsv", "no file matches this pattern")]
    [nothing] = expand(Source(str(tmp_path / "deep" / "..")))[:0] or expand(Source(str(tmp_path / "none" / "x")))
    assert nothing == Source(str(tmp_path / "none" / "x")), "a missing file is found to be so when it is opened"


def test_a_folder_without_records_says_what_it_has(tmp_path):
    (tmp_path / "notes.md").touch()
    [found] = expand(Source(str(tmp_path)))
    assert isinstance(found, Unreadable)
    assert found.reason.startswith("is a folder without files of records (.jsonl, .ndjson,")
    assert found.reason.endswith("it has notes.md")


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "a[1].jsonl").touch()
    path = str(tmp_path / "a[1].jsonl")
    assert expand(Source(path)) == [Source(path)]


def test_records_given_as_a_path():
    [found] = expand(Source('{"prompt": "a"}' * 500))
    assert isinstance(found, Unreadable) and found.reason.startswith("is too long for a path; records go into a file")


def test_formats():
    assert [format_of(name) for name in ("a.JSONL", "a.csv.gz", "s3://b/a.parquet?x=1", "a.zip", "a")] == [
        ".jsonl",
        ".csv",
        ".parquet",
        "",
        "",
    ]


def test_hub_names(tmp_path):
    assert check_hub_name("hf:org/name") == ("org/name", None, "train")
    assert check_hub_name("hf:org/name:dev[:5]") == ("org/name", None, "dev[:5]")
    assert check_hub_name("hf:org/name:config:test") == ("org/name", "config", "test")
    (tmp_path / "README.md").touch()
    assert check_hub_name(f"hf:{tmp_path}") == (str(tmp_path), None, "train")
    for name in ("hf:", "hf:a::b", "hf:a:b:c:d"):
        with pytest.raises(InputError, match="expected hf:org/name, hf:org/name:split or hf:org/name:config:split"):
            check_hub_name(name)


def test_a_name_that_is_too_long_for_the_file_system(tmp_path):
    assert why_missing(str(tmp_path / ("x" * 300))) == "can't be read: File name too long"


def test_a_link_to_nothing_is_no_misspelt_name(tmp_path):
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "gone.jsonl")
    expected = f"is a link to {tmp_path}/gone.jsonl, which doesn't exist; make the link anew, or name the file"
    assert why_missing(str(tmp_path / "train.jsonl")) == expected
    link = Source(str(tmp_path / "train.jsonl"))
    assert expand(Source(str(tmp_path))) == expand(Source(f"{tmp_path}/*.jsonl")) == [link], "it isn't passed over"


def test_paths_that_no_file_can_have():
    assert why_missing("a\0b") == why_missing("\ud800") == "is no path: it has a character that no name can have"
