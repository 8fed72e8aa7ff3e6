"""Records that can't be encoded are left out as if their files didn't have them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_doctor import encode, words
from worlds import write_base

from raytune_llm.data import files
from raytune_llm.data.encoding import encode as encode_module
from raytune_llm.data.encoding.encode import encode_splits
from raytune_llm.data.encoding.usable import encode_usable
from raytune_llm.data.files import DataError, load
from raytune_llm.data.records import Chat
from raytune_llm.data.tables.record_table import RecordTable
from raytune_llm.errors import InputError
from raytune_llm.jobs import config
from raytune_llm.jobs.prepare import prepare


@dataclass(frozen=True)
class Method:
    """Encodes chats that don't say no."""

    def encode(self, record, tokens):
        if record.messages[-1].content.startswith("no"):
            raise InputError(f"{record.messages[-1].content!r} is refused")
        return encode(record, tokens)


def chat(i, answer):
    return json.dumps({"messages": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": answer}]})


def some(count, every=4, start=0):
    """Chats; every `every`-th is refused, the first one too."""
    return [chat(i, f"no {i}" if i % every == 0 else f"yes {i} 1") for i in range(start, start + count)]


def usable(lines):
    return [line for line in lines if '"no' not in line]


def write(path: Path, lines) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def read(*given, seed=0):
    job = config.load("check", ["model=demo", "data.on_error=skip", *given])
    return load(job.data, (Chat,), seed)


def rejected(splits):
    return [(row["file"], row["line"]) for row in map(json.loads, splits.rejects.content().splitlines())]


def same(found, other):
    """Whether both splits and what they were encoded to are equal, but for the lines."""
    (splits, encoded), (other_splits, other_encoded) = found, other
    assert replace(splits, fingerprints={}, num_lines=0) == replace(other_splits, fingerprints={}, num_lines=0)
    for name, split in encoded.items():
        own = getattr(other_encoded, name)
        assert split.encoded == own.encoded and list(split.records) == list(getattr(splits, name))
        assert split.truncation == own.truncation and len(splits.origins[name]) == len(split.records)
    return True


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_carved_eval_set_is_one_of_what_remains(is_large, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "num_cpus", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module, name in ((files, "MANY_RECORDS"), (encode_module, "LARGE_RECORDS")):
        monkeypatch.setattr(module, name, 5 if is_large else 1000)
    lines, tokens = some(40), words()
    path = write(tmp_path / "a.jsonl", lines)
    splits = read(f"data.train={path}", seed=seed)
    remaining, encoded = encode_usable(splits, tokens, Method().encode)
    assert (len(remaining.train), len(remaining.eval), remaining.carved) == (24, 6, True)
    assert remaining.rejects.count == 10 and remaining.num_lines == 40
    assert rejected(remaining) == [(path, line) for line in range(1, 41, 4)]
    assert isinstance(remaining.train, RecordTable) is isinstance(remaining.eval, RecordTable) is is_large
    whole = read(f"data.train={write(tmp_path / 'b.jsonl', usable(lines))}", seed=seed)
    assert same((remaining, encoded), (whole, encode_splits(whole, tokens, Method().encode)))
    for name, records in remaining.items():
        for index, record in enumerate(records):
            _, line = remaining.where(name, index).rsplit(":", 1)
            assert json.loads(lines[int(line) - 1])["messages"][0]["content"] == record.messages[0].content
    if is_large:
        monkeypatch.setattr(encode_module, "map_batches", None)  # the second time nothing is encoded
        assert same(encode_usable(splits, tokens, Method().encode), (remaining, encoded))


def test_all_splits_keep_what_can_be_encoded(tmp_path):
    train, held = some(12), some(9, start=20)
    paths = [write(tmp_path / folder / "a.jsonl", lines) for folder, lines in (("train", train), ("eval", held))]
    splits = read(f"data.train=[{{path: {paths[0]}, weight: 2}}]", f"data.eval={paths[1]}")
    remaining, encoded = encode_usable(splits, words(), Method().encode)
    assert (len(remaining.train), len(remaining.eval), remaining.carved) == (9, 6, False)
    expected = [(paths[0], 1), (paths[0], 5), (paths[0], 9), (paths[1], 1), (paths[1], 5), (paths[1], 9)]
    assert rejected(remaining) == expected, "files of one name are two files"
    assert encoded.train.rows.tolist() == [*range(9)] and len(encoded.train.examples) == 9
    assert remaining.sources("train") == {paths[0]: 9} and remaining.origins["train"].weight(8) == 2
    assert [remaining.where("eval", index) for index in (0, 5)] == ["a.jsonl:2", "a.jsonl:8"]


def test_where_all_can_be_encoded_nothing_changes(tmp_path):
    splits = read(f"data.train={write(tmp_path / 'a.jsonl', usable(some(20)))}")
    remaining, encoded = encode_usable(splits, words(), Method().encode)
    assert (
        remaining is splits and encoded.train.encoded == encode_splits(splits, words(), Method().encode).train.encoded
    )


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_a_record_that_is_left_out_are_left_out(seed, tmp_path):
    """Carving takes one of equal records for eval, and none of them for train."""
    lines = [*usable(some(40)), *[chat(1, "no 1")] * 9, *[chat(50, "no 2")] * 9]
    splits = read(f"data.train={write(tmp_path / 'a.jsonl', lines)}", seed=seed)
    remaining, encoded = encode_usable(splits, words(), Method().encode)
    assert remaining.rejects.count == 18 and len(remaining.train) + len(remaining.eval) == 30
    whole = read(f"data.train={write(tmp_path / 'b.jsonl', usable(lines))}", seed=seed)
    assert same((remaining, encoded), (whole, encode_splits(whole, words(), Method().encode)))


def test_too_little_that_remains_is_refused(tmp_path):
    many, none = write(tmp_path / "many.jsonl", some(20)), write(tmp_path / "none.jsonl", some(2, every=1))
    with pytest.raises(
        DataError, match=r"12 of 20 lines can't be used, too many to skip, such as .*a\.jsonl:1: 'no 0'"
    ):
        path = write(tmp_path / "a.jsonl", [*some(8), *some(10, every=1, start=20), *some(2, start=9)])
        encode_usable(read(f"data.train={path}"), words(), Method().encode)
    for given in ((f"data.train={many}", f"data.eval={none}"), (f"data.train={none}", f"data.eval={many}")):
        name = next(one.split("=")[0] for one in given if "none" in one)
        with pytest.raises(DataError) as raised:
            encode_usable(read(*given), words(), Method().encode)
        text = f"{name}: none of its records can be used; data.on_error=stop names the reasons"
        assert raised.value.problems == (text,)
    with pytest.raises(DataError, match="found 4 different records with 4 different prompts, too few to carve"):
        encode_usable(read(f"data.train={write(tmp_path / 'few.jsonl', some(6, every=3))}"), words(), Method().encode)


def test_a_location_without_a_usable_line_is_refused(tmp_path):
    good, bad = write(tmp_path / "good.jsonl", usable(some(20))), write(tmp_path / "bad.jsonl", ["{}"] * 3)
    for given in ((f"data.train={good}", f"data.eval={bad}"), (f"data.train={bad}", f"data.eval={good}")):
        name = next(one.split("=")[0] for one in given if "bad" in one)
        with pytest.raises(DataError) as raised:
            read(*given)
        text = f"{name}: none of its records can be used; data.on_error=stop names the reasons"
        assert raised.value.problems == (text,)


def test_the_check_is_one_of_what_remains(tmp_path):
    """Forty chats, ten of them with the same calls of tools, which a template without a place for tools refuses."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "user", "content": "weather"}
    called = json.dumps({"messages": [asked, {"role": "assistant", "content": "", "tool_calls": [call]}]})
    lines = [called if i % 4 == 0 else chat(f"red {i}", f"cat {i}") for i in range(40)]
    given = [f"model.name_or_path={write_base(tmp_path / 'base', 'llama')}", f"home={tmp_path}/home", "method=sft"]

    def prepared(lines, *more):
        return prepare(config.load("check", [*given, f"data.train={write(tmp_path / 'a.jsonl', lines)}", *more]))

    found = prepared(lines, "data.on_error=skip")
    kinds = {finding.kind: finding for finding in found.diagnosis.findings}
    assert kinds.pop("skipped_lines").text.startswith("10 of 40 lines are left out")
    clean = prepared([line for line in lines if line != called])
    assert list(kinds) == [finding.kind for finding in clean.diagnosis.findings]
    assert [split.num_records for split in found.diagnosis.splits.values()] == [24, 6]
    assert found.examples.train == clean.examples.train and found.examples.eval == clean.examples.eval
    assert list(found.encoded.eval.records) == list(clean.encoded.eval.records) == list(found.splits.eval)
