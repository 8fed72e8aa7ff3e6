"""Every format gives the same rows with their line numbers, and every damaged file a reason, never a traceback."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from raytune_llm.data.reading import delimited, formats, whole_json
from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.problems import BadLine
from raytune_llm.data.reading.streams import FAILURES, why_unreadable, within

ROWS = [{"prompt": f"què {i}, «x»", "completion": f"line\n{i}"} for i in range(4)]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def zipped(files: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def arrow_bytes(new: object) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table)
    return sink.getvalue()


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def feather_bytes(tmp_path: Path) -> bytes:
    feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "f"))
    return (tmp_path / "f").read_bytes()


FILES = {
    "train.jsonl": JSON_LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + JSON_LINES.encode(),
    "windows.jsonl": JSON_LINES.replace("\n{", "\r\n{").encode(),
    "no_last_newline.jsonl": JSON_LINES.rstrip("\n").encode(),
    "utf16.jsonl": JSON_LINES.encode("utf-16"),
    "utf32.jsonl": JSON_LINES.encode("utf-32"),
    "array.json": json.dumps(ROWS).encode(),
    "array_with_bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "no_suffix": JSON_LINES.encode(),
    "train.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "gz_without_suffix.jsonl": gzip.compress(JSON_LINES.encode()),
    "two_parts.gz": gzip.compress(JSON_LINES[:50].encode()) + gzip.compress(JSON_LINES[50:].encode()),
    "train.jsonl.bz2": bz2.compress(JSON_LINES.encode()),
    "train.jsonl.xz": lzma.compress(JSON_LINES.encode()),
    "train.jsonl.zst": pa.compress(JSON_LINES.encode(), codec="zstd", asbytes=True),
    "twice.jsonl.gz": gzip.compress(gzip.compress(JSON_LINES.encode())),
    "train.zip": zipped({"train.jsonl": JSON_LINES}),
    "mac.zip": zipped(
        {"a/train.jsonl": JSON_LINES, "__MACOSX/a/._train.jsonl": "x", "a/.DS_Store": "x", "a/._train.jsonl": "x"}
    ),
    "csv_inside.zip": zipped({"a/train.csv": as_csv(ROWS)}),
    "tsv_inside.csv.zip": zipped({"train.tsv": as_csv(ROWS, "\t")}),
    "csv_by_its_own_name.csv.zip": zipped({"train": as_csv(ROWS)}),
    "json_inside.csv": zipped({"train.jsonl": JSON_LINES}),
    "parquet_inside.zip": zipped({"train.parquet": parquet_bytes()}),
    "train.parquet.gz": gzip.compress(parquet_bytes()),
    "train.csv": as_csv(ROWS).encode(),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS).encode(),
    "utf16.csv": as_csv(ROWS).encode("utf-16"),
    "european.csv": as_csv(ROWS, ";").encode(),
    "train.tsv": as_csv(ROWS, "\t").encode(),
    "train.csv.gz": gzip.compress(as_csv(ROWS).encode()),
    "train.parquet": parquet_bytes(),
    "train.arrow": arrow_bytes(ipc.new_file),
    "stream.arrow": arrow_bytes(ipc.new_stream),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert [row for _, row in read(str(tmp_path / name))] == ROWS


def test_feather(tmp_path):
    (tmp_path / "train.feather").write_bytes(feather_bytes(tmp_path))
    assert [row for _, row in read(str(tmp_path / "train.feather"))] == ROWS


def test_what_is_read_is_hashed_uncompressed(tmp_path):
    digests = []
    for name in ("train.jsonl", "train.jsonl.gz", "train.zip"):
        (tmp_path / name).write_bytes(FILES[name])
        digest = hashlib.sha256()
        assert len(list(read(str(tmp_path / name), digest))) == len(ROWS)
        digests.append(digest.hexdigest())
    assert set(digests) == {hashlib.sha256(JSON_LINES.encode()).hexdigest()}


@pytest.mark.parametrize("chunk", [1, 3, 17, 1 << 20])
def test_lines_of_pretty_json_and_arrays(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(whole_json, "READ_CHARACTERS", chunk)
    values = [{"a": [1, {"b": "]\n"}]}, {"a": 22}, {}]
    for name, text in (
        ("array", json.dumps(values, indent=1)),
        ("objects", "\n\n".join(json.dumps(value, indent=1) for value in values)),
    ):
        file = tmp_path / name
        file.write_text(text)
        found = list(read(str(file)))
        assert [value for _, value in found] == values
        lines = text.splitlines()
        assert all(lines[number - 1].lstrip(" [,").startswith("{") for number, _ in found)


def test_cells_of_csv_are_text_but_for_keys_of_other_kinds(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [
        {"input_text": "007", "candidate_0": "1e5", "candidate_1": "NA", "choice": "1", "messages": ""},
        {
            "input_text": "true",
            "candidate_0": "null",
            "candidate_1": "[x]",
            "choice": "no",
            "messages": json.dumps(turns),
        },
    ]
    (tmp_path / "a.csv").write_text(as_csv(rows))
    found = [row for _, row in read(str(tmp_path / "a.csv"))]
    assert found == [
        {"input_text": "007", "candidate_0": "1e5", "candidate_1": "NA", "choice": 1},
        {"input_text": "true", "candidate_0": "null", "candidate_1": "[x]", "choice": "no", "messages": turns},
    ]


def test_line_numbers_of_csv_are_those_where_rows_begin(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x\ny"\n\n2,z\n3\n"4,5\n')
    assert list(read(str(tmp_path / "a.csv"))) == [
        (2, {"a": "1", "b": "x\ny"}),
        (5, {"a": "2", "b": "z"}),
        (6, BadLine(None, "a row of 1 cell below a header of 2; quote cells with commas")),
        (7, BadLine(None, "no row of CSV: unexpected end of data; the rest of the file isn't read")),
    ]


def test_keys_that_columnar_formats_fill_in_are_left_out(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]
    parquet.write_table(
        pa.Table.from_pylist([{"messages": turns, "x": None}, {"messages": turns, "x": 1}]), tmp_path / "p"
    )
    assert [row for _, row in read(str(tmp_path / "p"))] == [{"messages": turns}, {"messages": turns, "x": 1}]


BROKEN_LINES = {
    "twice": ('{"a": 1, "a": 2}', "the key 'a' occurs twice in one object"),
    "nested_twice": ('{"m": [{"role": 1, "role": 2}]}', "the key 'role' occurs twice in one object"),
    "nan": ('{"a": NaN}', "NaN is no JSON value"),
    "infinity": ("-Infinity", "-Infinity is no JSON value"),
    "digits": ("9" * 5000, "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits"),
    "cut": ('{"a": 1, "b": }', 'column 15: not JSON: expecting value, near \'{"a": 1, "b": }\''),
    "two": ('{"a": 1} {"a": 2}', 'column 10: not JSON: extra data, near \'{"a": 1} {"a": 2}\''),
    "single_quotes": (
        "{'a': 1}",
        "column 2: not JSON: expecting property name enclosed in double quotes, near \"{'a': 1}\"",
    ),
    "deep": ("[" * 100_000, "column 1: not JSON: nested too deeply, near '" + "[" * 40 + "'"),
    "control": ('{"a": "\x1b[31m"}', 'column 8: not JSON: invalid control character at, near \'{"a": "\\x1b[31m"}\''),
}


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_broken_lines_say_why_and_the_next_is_read(tmp_path, name):
    line, message = BROKEN_LINES[name]
    (tmp_path / "a.jsonl").write_text(f"{{}}\n{line}\n{{}}\n")
    (_, first), (number, bad), (_, last) = read(str(tmp_path / "a.jsonl"))
    assert (first, number, str(bad), last) == ({}, 2, message, {})


WHOLE = {
    "unended": ("[\n{},", [{}], 2, "the JSON array doesn't end; is the file whole?"),
    "broken": ('[\n{},\n{"a": x}]', [{}], 3, "not JSON: expecting value; the rest of the file isn't read, near "),
    "more": (
        "[\n{}\n]\n{}",
        [{}],
        4,
        "more text after the end of the JSON array; expected one array, near '",
    ),
    "twice": ('{\n"a": 1,\n"a": 2}', [], 1, "the key 'a' occurs twice in one object; the rest of the file isn't read"),
    "deep": ("[\n" + "[" * 100_000, [], 2, "nested too deeply; the rest of the file isn't read"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_that_are_no_json(tmp_path, name):
    text, before, line, message = WHOLE[name]
    (tmp_path / "a.json").write_text(text)
    *values, (number, bad) = read(str(tmp_path / "a.json"))
    assert [value for _, value in values] == before and number == line
    assert str(bad).startswith(message)


HEADERS = {
    "twice": ("a,b,a\n1,2,3\n", "the header has the column 'a' twice; expected a name for each column"),
    "unnamed": ("a,,b\n1,2,3\n", "the header has a column without a name; expected a name for each column"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_csv(tmp_path, name):
    text, message = HEADERS[name]
    (tmp_path / "a.csv").write_text(text)
    [(number, bad)] = read(str(tmp_path / "a.csv"))
    assert (number, str(bad)) == (1, message)


INDEXES = {
    "of_pandas": ("0,1,2", True),
    "shuffled": ("7,0,3", True),
    "text": ("0,x,2", False),
    "twice": ("0,1,0", False),
    "negative": ("0,-1,2", False),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_first_column_without_a_name_is_an_index(tmp_path, name):
    numbers, is_index = INDEXES[name]
    cells = numbers.split(",")
    (tmp_path / "a.csv").write_text(",prompt\n" + "".join(f"{cell},p\n" for cell in cells))
    rows = [row for _, row in read(str(tmp_path / "a.csv"))]
    if is_index:
        assert rows == [{"Unnamed: 0": cell, "prompt": "p"} for cell in cells]
    else:
        [bad] = [row for row in rows if isinstance(row, BadLine)]
        wrong = {"text": "x", "twice": "0", "negative": "-1"}[name]
        assert str(bad) == (
            f"the first column has no name, and holds '{wrong}', which is "
            f"{'the number of an earlier row, too' if name == 'twice' else 'no number of a row'}; "
            "give the column a name in the header, or leave it out"
        )


def test_a_byte_that_is_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}\n{}\n')
    (_, bad), (_, row) = read(str(tmp_path / "a.jsonl"))
    assert str(bad) == 'column 8: not JSON: byte 0xff is not UTF-8; save the file as UTF-8, near \'{"a": "ÿ"}\\n\''
    assert row == {}
    (tmp_path / "a.csv").write_bytes(b"a\n\xe9\n")
    [(_, bad)] = read(str(tmp_path / "a.csv"))
    assert str(bad) == "byte 0xe9 is not UTF-8; save the file as UTF-8; the rest of the file isn't read"


def with_bytes(archive: bytes, of_entry: bytes, of_directory: bytes) -> bytes:
    """An archive of one file with these flags and method, two bytes each, in both of its headers."""
    found, directory = bytearray(archive), archive.index(b"PK\x01\x02")
    found[6:10], found[directory + 8 : directory + 12] = of_entry, of_directory
    return bytes(found)


LOCKED = with_bytes(zipped({"a": "{}"}), b"\1\0\0\0", b"\1\0\0\0")
STRANGE = with_bytes(zipped({"a": "{}"}), b"\0\0\x63\0", b"\0\0\x63\0")


def empty_parquet() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), sink)
    return sink.getvalue()


DAMAGED = {
    "cut.gz": (
        FILES["train.jsonl.gz"][:-12],
        "can't be read: EOFError: Compressed file ended before",
    ),
    "bad.gz": (b"\x1f\x8b no gzip", "can't be read: BadGzipFile: Unknown compression method"),
    "bad.xz": (b"\xfd7zXZ\x00" + b"no" * 50, "can't be read: LZMAError: "),
    "cut.zst": (FILES["train.jsonl.zst"][:-9], "can't be read: OSError: Truncated compressed stream"),
    "bad.zip": (b"PK\x03\x04 no", "can't be read: BadZipFile: File is not a zip file"),
    "empty.zip": (
        zipped({}),
        "is a zip archive of no file; expected one file; unpack it, and name the files one by one",
    ),
    "two.zip": (
        zipped({"a": "{}", "b": "{}"}),
        "is a zip archive of 2 files (a, b); expected one file; unpack it, and name the files one by one",
    ),
    "book.xlsx": (
        zipped({"xl/workbook.xml": "x", "other": "y"}),
        "is an Office document; save the sheet as CSV",
    ),
    "locked.zip": (LOCKED, "can't be read: RuntimeError: File 'a' is encrypted, password required"),
    "method.zip": (STRANGE, "can't be read: NotImplementedError: That compression method is not supported"),
    "cut16.jsonl": (
        JSON_LINES.encode("utf-16")[:-1],
        "can't be read to its end: byte 0x0a is not UTF-16-LE; save the file as UTF-8",
    ),
    "latin.json": (b'["\xe9"]', "can't be read to its end: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    "no_rows.parquet": (empty_parquet(), "has no rows; expected one record a row"),
    "header.csv": (b"prompt,completion\n\n", "has a header ('prompt', 'completion') and no rows below it"),
    "cut.parquet": (parquet_bytes()[:-9], "can't be read: ArrowInvalid: "),
    "cut.arrow": (arrow_bytes(ipc.new_file)[:100], "can't be read: "),
    "model.bin": (
        bytes(range(256)) * 9,
        "is no text; JSON lines, a JSON array, CSV, TSV, Parquet and Arrow are read, also compressed",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_give_a_reason(tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FAILURES) as caught:
        list(read(str(path)))
    assert why_unreadable(str(path), caught.value).startswith(message)


@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (formats, "decoded", "train.jsonl"),
        (formats, "whole_values", "array.json"),
        (delimited, "decoded", "train.csv"),
        (formats, "without_nulls", "train.parquet"),
        (formats, "without_nulls", "train.arrow"),
    ],
)
@pytest.mark.parametrize("fault", [ValueError, RuntimeError, ImportError, KeyError, EOFError])
def test_a_fault_of_this_program_is_none_of_the_file(tmp_path, monkeypatch, owner, name, file, fault):
    def faulty(*arguments: object) -> object:
        raise fault("a fault")

    monkeypatch.setattr(owner, name, faulty)
    monkeypatch.setattr(delimited, "STRUCTURED", frozenset(ROWS[0]))
    (tmp_path / file).write_bytes(FILES[file])
    with pytest.raises(fault, match="a fault") as caught:
        list(read(str(tmp_path / file)))
    assert not isinstance(caught.value, FAILURES)
    assert caught.traceback[-1].name == "faulty"


def test_errors_of_libraries_are_reasons():
    found = why_unreadable("nowhere://a", unread("nowhere://a"))
    assert found == "can't be read: ValueError: Protocol not known: nowhere"
    assert why_unreadable("http://[a", unread("http://[a")).startswith("can't be read: ")
    assert why_unreadable("s3://", unread("s3://")).startswith("can't be read: ")


def unread(path: str) -> BaseException:
    with pytest.raises(FAILURES) as caught:
        list(read(path))
    return caught.value


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", "/dev/null"):
        with pytest.raises(FAILURES) as caught:
            list(read(str(path)))
        assert str(caught.value).startswith("is no file but a pipe or device, which could be read only once")


def test_a_line_without_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"a": "' + "x" * (2 << 20))
    [(_, bad)] = read(str(tmp_path / "a.jsonl"))
    assert str(bad) == "a line of more than 1 MiB; expected one record a line"


def test_what_gives_no_answer_is_given_up():
    import time

    with pytest.raises(TimeoutError, match="no answer within 0 seconds; is there a network, and are you logged in"):
        within(0.05, lambda: time.sleep(5))
    with pytest.raises(KeyError):
        within(5, lambda: {}["a"])
    assert within(5, lambda: 3) == 3


def test_reasons_name_the_cause():
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise FileNotFoundError("https://host/a.jsonl") from error
    except OSError as error:
        found = why_unreadable("https://host/a.jsonl", error)
    assert found == (
        "can't be read: FileNotFoundError: https://host/a.jsonl; "
        "caused by ConnectionRefusedError: [Errno 111] Connection refused"
    )
