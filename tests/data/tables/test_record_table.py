"""Records in a table are those that were appended, in memory or in a file."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from raytune_llm.data.records import Chat, Message, Preference, Prompt, Rationale, Supervised
from raytune_llm.data.tables.record_table import RecordTable, RecordWriter, digest_of
from raytune_llm.errors import InputError

RECORDS = [
    Supervised("a", "b\ud800 ü"),
    Chat((Message("system", "s"), Message("user", "u"), Message("assistant", "a"))),
    Preference("p", "c", "r"),
    Rationale("p", None, None),
    Prompt((Message("user", "u"),)),
] * 400


@pytest.mark.parametrize("memory_bytes", [0, 10_000, 1 << 30])
def test_records_come_back(memory_bytes):
    writer = RecordWriter(memory_bytes)
    for record in RECORDS:
        writer.append(record)
    assert len(writer) == len(RECORDS)
    table = writer.table()
    assert len(table) == len(RECORDS) and list(table) == RECORDS and table == RECORDS and table != RECORDS[1:]
    assert [table[index] for index in (0, 7, -1)] == [RECORDS[index] for index in (0, 7, -1)]
    assert [len(batch) for batch in table.batches(900)] == [900, 900, 200]
    assert [record for batch in table.batches(900) for record in batch] == RECORDS


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_a_selection_has_its_own_order_and_travels_alone(memory_bytes):
    writer = RecordWriter(memory_bytes)
    for record in RECORDS:
        writer.append(record)
    rows = [9, 3, 3, 1999]
    found = writer.table().select(rows)
    assert list(found) == [RECORDS[row] for row in rows]
    assert list(found[1:3]) == [RECORDS[3], RECORDS[3]]
    sent = pickle.dumps(found)
    assert len(sent) < 2000 and list(pickle.loads(sent)) == list(found)
    assert list(writer.table().select([])) == []


def test_equal_records_have_equal_hashes():
    table = RecordTable.of([Supervised("a" * 2, "b"), Supervised("aa", "b"), Supervised("a", "ab")])
    first, second, third = table.hashes()
    assert first == second != third
    assert digest_of(table) == digest_of(list(table)) != digest_of(list(table)[:2])
    assert digest_of(RecordTable.of(RECORDS).select(np.arange(2000)[::-1])) == digest_of(RECORDS[::-1])


def test_what_is_not_there_is_an_index_error():
    with pytest.raises(IndexError, match="record 2000 of 2000"):
        RecordTable.of(RECORDS)[2000]
    assert list(RecordTable.of([])) == [] and len(RecordWriter().table()) == 0


def test_the_file_of_a_table_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writer = RecordWriter(0)
    writer.append(RECORDS[0])
    assert list(writer.table()) == RECORDS[:1] and not list(tmp_path.iterdir()), "it would outlive a killed job"


def full(prefix):
    """A temporary file of a full disk."""
    return Path("/dev/full").open("r+b")


@pytest.mark.parametrize("count", [1, 2000])
def test_a_full_temporary_folder_is_named(monkeypatch, tmp_path, count):
    """Few records are lost when they are read, many when they are written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    writer = RecordWriter(memory_bytes=0)
    with pytest.raises(InputError) as error:
        for record in RECORDS[:count]:
            writer.append(record)
        writer.table()[0]
    assert str(error.value) == (
        f"no room for the records in the temporary folder {tmp_path} (No space left on device): free some space there, "
        "or set TMPDIR to a folder of another disk"
    )


def test_no_temporary_folder_at_all(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    with pytest.raises(InputError, match=r"^no temporary folder for the records: No usable .*; set TMPDIR"):
        RecordWriter(memory_bytes=0).append(RECORDS[0])
