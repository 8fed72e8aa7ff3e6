"""Reading locations, carving an eval set, and all problems of all files in one message."""

import gzip
import http.server
import json
import os
import threading
from pathlib import Path

import fsspec
import pytest

from raytune_llm.data.carving import carve
from raytune_llm.data.config import Data, OnError
from raytune_llm.data.files import BadLine, DataError, load, read
from raytune_llm.data.reading import formats
from raytune_llm.data.records import Chat, Preference, Supervised
from raytune_llm.errors import InputError

KINDS = (Supervised, Chat)


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"input_text": f"question {i}", "output_text": f"answer {i}"} for i in range(start, start + count)]


def write(path: Path, lines: list[object]) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def data(train: object, **changes: object) -> Data:
    defaults = {"eval": None, "test": None, "eval_size": 256, "max_tokens": None, "columns": {}, "ignore": []}
    defaults |= {"subset": 1.0, "weights": {}}
    return Data(**{"train": train, "guard": None, **defaults, "on_error": OnError.stop, "strict": False, **changes})


def problems(*arguments: object, **changes: object) -> str:
    with pytest.raises(DataError) as caught:
        load(data(*arguments, **changes), KINDS, 0)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_size": 0}, "data.eval_size=0 is not allowed; allowed: ≥ 1"),
        ({"max_tokens": 1}, "data.max_tokens=1 is not allowed; allowed: ≥ 2 or null"),
        ({"test": " "}, "data.test=' ' is not allowed; allowed: a location or null"),
        ({"test": []}, "data.test=[] is not allowed; allowed: a location, a list of them, or null"),
        (
            {"eval": ["a.jsonl", {"path": "b.jsonl", "wieght": 2}]},
            "data.eval[1]={'path': 'b.jsonl', 'wieght': 2} is not allowed; allowed: a location, or {path: a location, "
            "weight: a number above 0}",
        ),
        (
            {"eval": [{"path": "b.jsonl", "weight": 0}]},
            "data.eval[0].weight=0 is not allowed; allowed: a number above 0 and at most 1000",
        ),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match="data") as caught:
        data("train.jsonl", **changes)
    assert str(caught.value) == message


def test_blank_lines_bom_and_line_numbers(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes('\ufeff{"input_text": "é"}\r\n\n  \n{"a": [1]}\nnull\n"\u2028"'.encode())
    assert list(read(str(file))) == [(1, {"input_text": "é"}), (4, {"a": [1]}), (5, None), (6, "\u2028")]


def test_broken_lines_say_where(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 1, "b": }\n{"a": "\xff"}\n' + b"[" * 100_000 + b"\n")
    bad = {number: value for number, value in read(str(file)) if isinstance(value, BadLine)}
    assert str(bad[2]) == 'column 15: not JSON: expecting value, near \'{"a": 1, "b": }\''
    assert str(bad[3]) == 'column 8: not JSON: byte 0xff is not UTF-8; save the file as UTF-8, near \'{"a": "ÿ"}\\n\''
    assert str(bad[4]).startswith("column 1: not JSON: nested too deeply, near '[[[[")


def test_compressed_and_remote_files_read_alike(tmp_path, monkeypatch):
    plain = write(tmp_path / "train.jsonl", rows(6))
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    with fsspec.open("memory://bucket/train.jsonl", "wb") as stream:
        stream.write(Path(plain).read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = load(data(plain), KINDS, 0)
    for location in (str(packed), "memory://bucket/train.jsonl", f"file://{plain}", "~/train.jsonl"):
        assert load(data(location), KINDS, 0) == expected


def test_s3(tmp_path, monkeypatch):
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows(6))

    class Bucket(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> bytes:
            found = body if self.path == "/bucket/train.jsonl" else b""
            self.send_response((206 if self.headers.get("Range") else 200) if found else 404)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            return found

        def do_GET(self) -> None:
            self.wfile.write(self.do_HEAD())

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    query = f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    try:
        assert [raw for _, raw in read(f"s3://bucket/train.jsonl{query}")] == rows(6)
        missing = f"s3://bucket/none.jsonl{query}"
        assert f"{missing} (data.train): can't be read: FileNotFoundError: " in problems(missing)
    finally:
        server.shutdown()
        server.server_close()


def test_hub_data_sets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", rows(8))
    write(tmp_path / "set" / "test.jsonl", rows(3, start=90))
    base = f"hf:{tmp_path}/set"
    assert [raw for _, raw in read(base)] == rows(8)
    assert [raw for _, raw in read(f"{base}:test")] == rows(3, start=90)
    assert [raw for _, raw in read(f"{base}:default:train[2:4]")] == rows(2, start=2)
    made = load(data(f"{base}:train", eval=f"{base}:test"), KINDS, 0)
    assert (len(made.train), len(made.eval)) == (8, 3)
    assert "(data.train): can't be read: ValueError: Unknown split" in problems(f"{base}:dev")
    malformed = "expected hf:org/name, hf:org/name:split or hf:org/name:config:split"
    assert f"(data.train): {malformed}" in problems(f"{base}:a:b:c")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    assert "other is no folder of a data set: it has no files of records" in problems(f"hf:{tmp_path}/other")


def test_eval_is_carved_once_for_a_seed(tmp_path):
    train = write(tmp_path / "train.jsonl", [*rows(50), *rows(50)])
    first = load(data(train, eval_size=7), KINDS, 1)
    assert first.carved and len(first.eval) == 7 and len(first.train) == 2 * 43
    assert not set(first.eval) & set(first.train), "both copies of a record leave train"
    assert load(data(train, eval_size=7), KINDS, 1) == first
    assert load(data(train, eval_size=7), KINDS, 2).eval != first.eval
    assert len(load(data(train, eval_size=256), KINDS, 1).eval) == 10, "at most a fifth of the different records"
    assert [record.prompt for record in first.train][:43] == [record.prompt for record in first.train][43:]


def test_too_few_to_carve():
    with pytest.raises(DataError) as caught:
        carve([Supervised("a", "b")] * 9, 4, 0)
    few = "found 1 different record with 1 different prompt, too few to carve an eval set from, expected at least 5"
    assert f"data.train: {few}; or name data.eval" in str(caught.value)


def test_no_prompt_is_in_both_parts_of_a_carved_set():
    asked = [Supervised(f"question {i % 40}", f"answer {i % 7}") for i in range(200)]
    train, held = carve(asked, 50, 0)
    prompts = [{asked[i].prompt for i in part} for part in (train, held)]
    assert not prompts[0] & prompts[1], "40 questions with several answers each"
    assert 0 < len(held) <= 50 and len(held) == len({asked[i] for i in held})

    one_instruction = [Preference("Write a tweet.", f"good {i}", f"bad {i}") for i in range(50)]
    train, held = carve(one_instruction, 8, 0)
    assert len(held) == 8 and len(train) == 42

    varied = [Supervised(" Yes?" if i % 2 else "yes?", f"{i}") for i in range(2)]
    varied += [Supervised(f"q {i}", "a") for i in range(20)]
    train, held = carve(varied, 4, 1)
    assert ({0, 1} <= set(train)) or ({0, 1} <= set(held)), "case and whitespace make no other prompt"


def test_more_data_move_few_records_of_a_carved_set():
    asked = [Supervised(f"question {i}", "a") for i in range(1000)]
    first = {asked[i] for i in carve(asked, 100, 0)[1]}
    more = [*asked, *(Supervised(f"new {i}", "a") for i in range(50))]
    assert len(first & {more[i] for i in carve(more, 100, 0)[1]}) >= 90


def test_given_splits_stay_as_they_are(tmp_path):
    train, held = write(tmp_path / "train.jsonl", rows(9)), write(tmp_path / "held.jsonl", rows(4, start=50))
    made = load(data(train, eval=held, test=held), KINDS, 0)
    assert not made.carved and [len(records) for _, records in made.items()] == [9, 4, 4]
    assert made.fingerprints["eval"] == made.fingerprints["test"] != made.fingerprints["train"]
    Path(train).write_text(Path(train).read_text().replace("answer 3", "answer 4"))
    assert load(data(train, eval=held), KINDS, 0).fingerprints["train"] != made.fingerprints["train"]
    only_test = load(data(None, test=held), KINDS, 0)
    assert [name for name, _ in only_test.items()] == ["test"]
    with pytest.raises(InputError, match="are all null; name at least one location"):
        load(data(None), KINDS, 0)


def test_all_problems_of_all_files_at_once(tmp_path):
    train = write(
        tmp_path / "train.jsonl",
        [*rows(2), '{"input_text": "a"', {"input_text": "a"}, {"input_text": 3, "output_text": "b"}],
    )
    held = write(tmp_path / "held.jsonl", [{"words": str(i)} for i in range(30)])
    lines = problems(train, eval=held, test=str(tmp_path / "tset.jsonl")).splitlines()
    assert lines[0] == "34 problems of 5 kinds in the data:"
    assert lines[1] == f"  {train}:3: column 19: not JSON: expecting ',' delimiter, near '{{\"input_text\": \"a\"'"
    assert lines[2].startswith(f"  {train}:4: output_text: found no such key among 'input_text', expected a string")
    assert lines[3] == f"  {train}:5: input_text: found the number 3, expected a string; put it in quotes"
    assert lines[4].startswith(
        f"  {held}:1: keys: found 'words', expected a Supervised record (input_text+output_text or"
    )
    assert lines[5] == "      and 29 more of this kind (lines 2, 3 …)"
    assert lines[6].startswith(f"  {tmp_path}/tset.jsonl (data.test): no such file; did you mean ")
    assert lines[7].startswith("Correct them, then run jobs/check.py with the same data and method")


def test_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "train.jsonl", rows(5))
    (tmp_path / "notes.md").touch()
    missing = tmp_path / "trian.jsonl"
    assert f"  {missing} (data.train): no such file; did you mean train.jsonl?\n" in problems(str(missing))
    other = tmp_path / "zzz"
    assert f"{other} (data.train): no such file; its folder has notes.md, train.jsonl\n" in problems(str(other))
    deep = tmp_path / "a" / "b" / "train.jsonl"
    assert f"no such file; its folder is missing too, the nearest that exists is {tmp_path}\n" in problems(str(deep))


def test_empty_folder_and_broken_archives(tmp_path):
    blank = write(tmp_path / "blank.jsonl", ["", "  "])
    assert f"{blank} (data.train): the file is empty; expected one JSON object a line" in problems(blank)
    (tmp_path / "empty.jsonl").touch()
    assert "(data.train): the file is empty; expected one JSON object a line" in problems(str(tmp_path / "empty.jsonl"))
    whole = gzip.compress(b'{"input_text": "a", "output_text": "b"}\n' * 1000)
    for name, content in {"cut.jsonl.gz": whole[:-20], "bad.jsonl.xz": b"\xfd7zXZ\x00 no"}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name} (data.train): can't be read: " in problems(str(tmp_path / name))


def test_permission_denied(tmp_path):
    train = write(tmp_path / "train.jsonl", rows(5))
    os.chmod(train, 0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # root may read everything
    try:
        message = problems(train)
    finally:
        if is_root:
            os.seteuid(0)
    assert f"{train} (data.train): permission denied; make it readable for the user of this job" in message


def test_unknown_protocol():
    assert "can't be read: ValueError: Protocol not known: nowhere" in problems("nowhere://bucket/train.jsonl")


@pytest.mark.parametrize("name", ["decoded", "Digesting"])
def test_a_fault_of_this_program_is_no_problem_of_the_data(tmp_path, monkeypatch, name):
    def faulty(*arguments: object) -> object:
        raise ValueError("a fault")

    monkeypatch.setattr(formats, name, faulty)
    with pytest.raises(ValueError, match=r"^a fault$") as caught:
        load(data(write(tmp_path / "train.jsonl", rows(5))), KINDS, 0)
    assert type(caught.value) is ValueError and caught.traceback[-1].name == "faulty"


def test_kinds_of_the_method_decide(tmp_path):
    pair = {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 0}
    train = write(tmp_path / "train.jsonl", [{**pair, "input_text": f"a{i}"} for i in range(5)])
    assert {type(record) for record in load(data(train), (Preference,), 0).train} == {Preference}
    assert f"{train}:1: record: found a Preference record with keys 'input_text'" in problems(train)
