"""Many records: several processes and the cache give what one process gives, whatever fails."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from test_doctor import encode, numbered, words

import raytune_llm
from raytune_llm.data import progress
from raytune_llm.data.encoding import cache, workers
from raytune_llm.data.encoding import encode as encode_module
from raytune_llm.data.encoding.cache import cache_folder, cache_key, make_room
from raytune_llm.data.encoding.encode import encode_split
from raytune_llm.data.encoding.workers import map_batches, num_cpus
from raytune_llm.data.files import DataError
from raytune_llm.data.records import Chat, Message, Supervised
from raytune_llm.data.tables import array_files
from raytune_llm.data.tables.array_files import META
from raytune_llm.data.tables.record_table import RecordTable
from raytune_llm.errors import InputError

NOTHING_LEFT = Chat((Message("user", "1 " * 99), Message("assistant", "yes")))
REFUSED = Chat((Message("user", "1"), Message("assistant", "no good")))
BROKEN = Supervised("the method fails", "on it")


@dataclass(frozen=True)
class Method:
    """Encodes as test_doctor does, but for two records."""

    setting: int = 0

    def encode(self, record, tokens):
        if record == REFUSED:
            raise InputError("it is refused")
        if record == BROKEN:
            raise KeyError("broken")
        return encode(record, tokens)


class NoMethod:
    def encode(self, record, tokens):
        return encode(record, tokens)


@pytest.fixture(autouse=True)
def large(monkeypatch, tmp_path):
    """Few records are many here, and the cache is the test's own."""
    monkeypatch.setattr(encode_module, "LARGE_RECORDS", 50)
    monkeypatch.setattr(encode_module, "BATCH_RECORDS", 16)
    monkeypatch.setattr(encode_module, "num_cpus", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def records():
    return [*numbered(40), NOTHING_LEFT, *numbered(60, 40)]


def entries():
    return sorted(folder.name for folder in cache_folder().iterdir()) if cache_folder().exists() else []


def one_by_one():
    tokens = words()
    return encode_split("train", records(), tokens, encode, range(49)), [encode(one, tokens) for one in records()]


def check(found):
    """Whether a split is what one process makes of `records`."""
    few, examples = one_by_one()
    assert found.encoded == examples and list(found.records) == records() and found.encoded[40] is None
    assert found.truncation.records == 101 and found.truncation.dropped == 1
    assert few.encoded == examples[:49]
    return True


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("as_table", [False, True])
def test_processes_change_nothing(num_workers, as_table, monkeypatch):
    monkeypatch.setattr(encode_module, "num_cpus", lambda: num_workers)
    given = RecordTable.of(records()) if as_table else records()
    assert check(encode_split("train", given, words(), Method().encode))
    assert len(entries()) == 1


def test_the_second_time_nothing_is_encoded(monkeypatch):
    encode_split("train", records(), words(), Method().encode)
    monkeypatch.setattr(encode_module, "map_batches", None)
    assert check(encode_split("eval", RecordTable.of(records()), words(), Method().encode))


def test_what_encoding_depends_on_is_in_the_name():
    tokens = words()
    template = words()
    template.tokenizer.chat_template += " "
    special = words()
    special.tokenizer.add_special_tokens({"bos_token": "7"})
    keys = [
        cache_key(records(), tokens, Method().encode),
        cache_key(records()[::-1], tokens, Method().encode),
        cache_key(records(), words(63), Method().encode),
        cache_key(records(), template, Method().encode),
        cache_key(records(), special, Method().encode),
        cache_key(records(), tokens, Method(1).encode),
    ]
    assert len(set(keys)) == 6 and all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    assert cache_key(records(), words(), Method().encode) == keys[0], "another tokenizer object, equal"


def test_the_code_that_encodes_is_in_the_name(monkeypatch, tmp_path):
    names = {str(file.relative_to(Path(raytune_llm.__file__).parent)) for file in cache.package_files()}
    assert {"data/tokenizing/tokens.py", "data/question.py", "data/dialects/turns.py", "methods/sft.py"} <= names
    keys = [cache_key(records(), words(), Method().encode)]
    changed = tmp_path / "tokens.py"
    for content in ("before", "after"):
        changed.write_text(content)
        monkeypatch.setattr(cache, "package_files", lambda: [changed])
        cache._code.cache_clear()
        keys.append(cache_key(records(), words(), Method().encode))
    cache._code.cache_clear()
    assert len(set(keys)) == 3


@pytest.mark.parametrize("unknown", [encode, NoMethod().encode, Method(object()).encode])
def test_what_can_not_be_identified_is_not_cached(unknown):
    assert check(encode_split("train", records(), words(), unknown)) and entries() == []


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "meta", "not json"])
def test_a_damaged_entry_is_replaced(damage):
    encode_split("train", records(), words(), Method().encode)
    (folder,) = cache_folder().iterdir()
    file = folder / ("completion.ids" if damage in ("flip", "cut", "remove") else META)
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"cut": bytes(data[:-1]), "not json": b"["}.get(damage, bytes(data)))
    assert check(encode_split("train", records(), words(), Method().encode))
    assert cache.find(entries()[0]) is not None and len(entries()) == 1


def test_a_job_that_was_faster_is_no_error(monkeypatch):
    finish = array_files.GrowingArrays.finish

    def beaten(self, about):
        found = finish(self, about)
        shutil.copytree(self._folder, self._folder.parent / key)
        return found

    key = cache_key(records(), words(), Method().encode)
    monkeypatch.setattr(array_files.GrowingArrays, "finish", beaten)
    assert check(encode_split("train", records(), words(), Method().encode)) and entries() == [key]


@pytest.mark.parametrize("after", range(0, 40, 3))
def test_a_disk_that_fills_up_costs_the_cache_only(after, monkeypatch, capsys):
    count = iter(range(10**6))
    append = array_files._GrowingFile.append

    def full(self, array):
        if next(count) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, array)

    monkeypatch.setattr(array_files._GrowingFile, "append", full)
    assert check(encode_split("train", records(), words(), Method().encode)) and entries() == []
    line = "! encoded records aren't kept for the next job: No space left on device (below $XDG_CACHE_HOME or ~/.cache)"
    assert capsys.readouterr().out.splitlines() == [line]


def test_a_cache_that_can_not_be_made_costs_the_cache_only(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check(encode_split("train", records(), words(), Method().encode))
    assert "aren't kept for the next job: Not a directory" in capsys.readouterr().out


def test_the_oldest_entries_make_room(tmp_path):
    now = time.time()
    for age, name in enumerate(["new", "used", "old", "kept", "unfinished-new", "unfinished-old"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids").write_bytes(b"x" * 100)
        used = now - (10**6 if name == "unfinished-old" else age)
        os.utime(tmp_path / name, (used, used))
    make_room(tmp_path, keep="kept", most_bytes=250)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["kept", "new", "unfinished-new"]
    make_room(tmp_path, keep="kept", most_bytes=0)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["kept", "unfinished-new"]


def test_a_found_entry_is_the_newest():
    encode_split("train", records(), words(), Method().encode)
    (folder,) = cache_folder().iterdir()
    os.utime(folder, (1, 1))
    encode_split("train", records(), words(), Method().encode)
    assert folder.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_records_that_can_not_be_encoded_are_named(num_workers, monkeypatch):
    monkeypatch.setattr(encode_module, "num_cpus", lambda: num_workers)
    given = [*numbered(30), REFUSED, *numbered(30), *[REFUSED] * 30]
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            encode_split("train", given, words(), Method().encode, where=lambda index: f"a.jsonl:{index + 1}")
        assert raised.value.total == 31 and raised.value.problems == (
            "a.jsonl:31: it is refused\n      and 30 more of this kind (lines 62, 63 …)",
        )
        monkeypatch.setattr(encode_module, "map_batches", None)  # the second time nothing is encoded


def test_a_lost_process_costs_speed_only(monkeypatch, capsys):
    started = workers.start_workers

    def start(*arguments):
        made = started(*arguments)
        os.kill(made[0]._process.pid, signal.SIGKILL)
        return made

    monkeypatch.setattr(workers, "start_workers", start)
    monkeypatch.setattr(encode_module, "num_cpus", lambda: 2)
    assert check(encode_split("train", records(), words(), Method().encode))
    line = "! a process that works on the records was lost; the job's own does its part"
    assert capsys.readouterr().out.splitlines() == [line]


def test_what_can_not_be_sent_is_encoded_here(monkeypatch):
    monkeypatch.setattr(encode_module, "num_cpus", lambda: 2)
    assert check(encode_split("train", records(), words(), lambda record, tokens: encode(record, tokens)))


def test_what_another_process_can_not_import_is_done_here(monkeypatch, capsys):
    class Local:
        def __reduce__(self):
            return Method, ()

        def __call__(self, batch):
            return len(batch)

    monkeypatch.setattr(Method, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Method", Method, raising=False)
    assert list(map_batches(Local(), [numbered(5)] * 9, 2)) == [5] * 9
    assert set(capsys.readouterr().out.splitlines()) == {
        "! a process that works on the records was lost; the job's own does its part"
    }


def test_an_error_of_a_method_is_its_own(monkeypatch):
    for num_workers in (1, 2):
        monkeypatch.setattr(encode_module, "num_cpus", lambda count=num_workers: count)
        with pytest.raises(KeyError, match="broken"):
            encode_split("train", [*numbered(60), BROKEN], words(), Method().encode)


def test_processes_end_with_what_they_are_for():
    blocks = map_batches(len, [numbered(5)] * 40, 2)
    next(blocks)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    running = children.read_text().split()
    assert running
    blocks.close()
    assert not set(running) & set(children.read_text().split())


def test_a_job_without_a_guarded_main_module_can_have_processes(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "print('started', flush=True)\n"
        "from test_doctor import numbered\n"
        "from raytune_llm.data.encoding.workers import map_batches\n"
        "print(list(map_batches(len, [numbered(5)] * 4, 2)))\n"
    )
    found = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.splitlines() == ["started", "[5, 5, 5, 5]"], found.stderr


def test_progress_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.RecordProgress("tokenising data.train", 1_000_000)
    for seconds in (1, 9, 10, 200):
        now[0] = seconds
        shown.add(10_000 if seconds < 200 else 870_000)
    now[0] = 230
    shown.add(50_000)
    now[0] = 400
    shown.add(50_000)
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "tokenising data.train: 30,000 of 1,000,000 records, 3,000 a second, 5 min left",
        "tokenising data.train: 900,000 of 1,000,000 records, 4,500 a second, 22 s left",
    ]


def test_progress_on_a_terminal_is_a_bar_that_vanishes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = progress.RecordProgress("tokenising data.train", 100)
    shown.add(50)
    shown.close()
    found = capsys.readouterr()
    assert "tokenising data.train" in found.err and "/100" in found.err and found.out == ""


def test_a_container_has_its_quota(tmp_path):
    quota = tmp_path / "cpu.max"
    assert num_cpus(quota) == len(os.sched_getaffinity(0))
    for text, most in (("50000 100000\n", 1), ("max 100000\n", 10**6), ("junk", 10**6)):
        quota.write_text(text)
        assert num_cpus(quota) == min(most, len(os.sched_getaffinity(0)))


def test_counts_of_blocks_are_added_up():
    tokens = words(10)
    one, other = (encode_split("train", part, tokens, encode).truncation for part in (numbered(3), [NOTHING_LEFT]))
    both = encode_module.merged(one, other)
    assert both == replace(one, **vars(encode_split("train", [*numbered(3), NOTHING_LEFT], tokens, encode).truncation))
    assert both.longest_tokens == other.longest_tokens > one.longest_tokens


def test_ids_take_two_bytes_where_the_vocabulary_allows():
    found = encode_split("train", records(), words(), Method().encode)
    assert found.examples.columns["completion"].ids.flat.dtype == np.uint16
