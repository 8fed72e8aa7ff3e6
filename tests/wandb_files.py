"""Offline W&B runs, read back from their files: the same records that `wandb sync` uploads."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Recorded:
    """What one run's file says."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    exit_code: int = -1


def recorded(file: Path) -> Recorded:
    """The finished run's records; W&B's own process may write the last of them just after finish() has returned."""
    deadline = time.monotonic() + 30
    while (found := recorded_so_far(file)).exit_code < 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def recorded_so_far(file: Path) -> Recorded:
    found = Recorded()
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            found.summary |= {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.summary.update}
        elif kind == "metric":
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "files":
            found.files += [file.path for file in record.files.files]
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file: 7 bytes of header, then a LevelDB log of protobuf records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.wandb"))
