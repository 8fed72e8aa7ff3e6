"""Carving many records: several processes choose what one does."""

import numpy as np

from raytune_llm.data import carving
from raytune_llm.data.carving import carve
from raytune_llm.data.records import Chat, Message, Supervised
from raytune_llm.data.tables.record_table import RecordTable


def test_processes_change_nothing(monkeypatch, capfd):
    records = [Supervised(f"ask {i % 90}", f"say {i % 95}") for i in range(150)]
    records += [Chat((Message("user", f"{i}"), Message("assistant", f"é {i}"))) for i in range(50)]
    whole = carve(records, 20, 0)
    monkeypatch.setattr(carving, "MANY_RECORDS", 100)
    monkeypatch.setattr(carving, "BLOCK_RECORDS", 32)
    monkeypatch.setattr(carving, "num_cpus", lambda: 2)
    for given in (records, RecordTable.of(records)):
        for one, other in zip(carve(given, 20, 0), whole, strict=True):
            assert len(one) and np.array_equal(one, other)
    assert capfd.readouterr() == ("", ""), "a process failed"
