"""Offline W&B runs, read back from their files: the same records that `wandb sync` uploads."""

import json
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from raytune_llm.errors import InputError
from raytune_llm.training.tracking.base import RunInfo
from raytune_llm.training.tracking.wandb import Mode, WandB, run_id

OFFLINE = WandB(project="tuning", entity=None, mode=Mode.offline, tags=["demo"], directory=None)


def info(directory: Path, name: str = "trial-1", group: str | None = "a-sweep", from_step: int = 0) -> RunInfo:
    config = {"tuning": {"steps": 50, "learning_rate_multiplier": 1.0}, "mode": Mode.offline}
    return RunInfo(name=name, group=group, config=config, directory=str(directory), from_step=from_step)


@dataclass
class Recorded:
    """What one run's file says."""

    run: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    axes: dict[str, str]
    exit_code: int


def recorded(file: Path) -> Recorded:
    """The finished run's records; W&B's own process may write the last of them just after finish() has returned."""
    deadline = time.monotonic() + 30
    while (found := recorded_so_far(file)).exit_code < 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def recorded_so_far(file: Path) -> Recorded:
    found = Recorded(None, {}, [], {}, {}, -1)
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


def test_two_trials_of_a_sweep_side_by_side(tmp_path: Path) -> None:
    infos = [info(tmp_path / name, name) for name in ("trial-1", "trial-2")]
    runs = [OFFLINE.start(one) for one in infos]
    for step in (1, 2):
        for number, run in enumerate(runs, start=1):
            run.log(step, {"train/loss": number / step})
    runs[0].log(2, {"eval/loss": 0.5})
    for number, run in enumerate(runs, start=1):
        run.finish({"best/eval/loss": number / 4}, failed=number == 2)

    for number, one in enumerate(infos, start=1):
        (file,) = files(Path(one.directory))
        found = recorded(file)
        assert found.run.run_id == run_id(one)
        assert (found.run.display_name, found.run.run_group, found.run.job_type) == (one.name, "a-sweep", "trial")
        assert found.run.project == "tuning" and list(found.run.tags) == ["demo"]
        assert found.config["tuning"] == {"steps": 50, "learning_rate_multiplier": 1.0}
        assert found.config["mode"] == "offline"
        history = [(line["step"], line["_step"], line["train/loss"]) for line in found.history]
        assert history == [(1, 1, number), (2, 2, number / 2)]
        assert found.axes["*"] == "step"
        assert found.summary["best/eval/loss"] == number / 4
        assert found.exit_code == (1 if number == 2 else 0)
    assert recorded(files(tmp_path / "trial-1")[0]).history[1]["eval/loss"] == 0.5


def test_a_resumed_trial_continues_in_its_own_run(tmp_path: Path) -> None:
    for one, steps in ((info(tmp_path), (1, 2)), (info(tmp_path, from_step=2), (3,))):
        run = OFFLINE.start(one)
        for step in steps:
            run.log(step, {"train/loss": 1.0})
        run.finish({}, failed=False)
    found = sorted((recorded(file) for file in files(tmp_path)), key=lambda one: one.history[0]["step"])
    assert [[line["step"] for line in one.history] for one in found] == [[1, 2], [3]]
    assert found[0].run.run_id == found[1].run.run_id


def test_the_id_tells_runs_apart(tmp_path: Path) -> None:
    one = info(tmp_path)
    others = [replace(one, name="trial-2"), replace(one, group="b-sweep"), replace(one, directory="/elsewhere")]
    assert len({run_id(each) for each in (one, *others)}) == 4
    assert run_id(one) == run_id(replace(one, from_step=50, config={}))
    assert run_id(one).isalnum() and len(run_id(one)) == 16


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run = replace(OFFLINE, mode=Mode.disabled).start(info(tmp_path, group=None))
    run.log(1, {"train/loss": 1.0})
    run.finish({}, failed=False)
    assert files(tmp_path) == []


def test_the_directory_can_be_elsewhere(tmp_path: Path) -> None:
    run = replace(OFFLINE, directory=str(tmp_path / "there")).start(info(tmp_path / "run"))
    run.finish({}, failed=False)
    assert len(files(tmp_path / "there")) == 1
    assert not (tmp_path / "run").exists()


def test_offline_in_an_object_store_would_be_lost() -> None:
    with pytest.raises(InputError, match=r"tracking.wandb.directory=null with mode=offline would lose the runs"):
        OFFLINE.start(replace(info(Path()), directory="s3://bucket/run"))


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_online_without_an_api_key_is_refused_before_anything_starts(no_credentials: None) -> None:
    with pytest.raises(InputError, match=r"tracking.wandb.mode=online needs an API key.*WANDB_API_KEY"):
        replace(OFFLINE, mode=Mode.online)


def test_online_on_a_worker_without_the_key_is_refused(
    no_credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    arrived = pickle.dumps(replace(OFFLINE, mode=Mode.online))
    monkeypatch.delenv("WANDB_API_KEY")
    tracker = pickle.loads(arrived)
    with pytest.raises(InputError, match="needs an API key"):
        tracker.start(info(tmp_path))


def test_a_key_in_netrc_will_do(no_credentials: None, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert replace(OFFLINE, mode=Mode.online).mode is Mode.online


def test_a_malformed_key_is_named(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(InputError, match=r"tracking.wandb.mode=online: WANDB_API_KEY invalid"):
        replace(OFFLINE, mode=Mode.online)


def test_it_is_a_config_schema() -> None:
    schema = OmegaConf.structured(WandB)
    values = {"project": "p", "entity": None, "mode": "offline", "tags": ["a"], "directory": None}
    assert OmegaConf.to_object(OmegaConf.merge(schema, values)) == replace(OFFLINE, project="p", tags=["a"])
    with pytest.raises(ValidationError, match="mode"):
        OmegaConf.merge(schema, {"mode": "sometimes"})


def test_importing_it_imports_no_wandb() -> None:
    unwanted = {"wandb", "torch", "ray", "hydra"}
    code = f"import sys, raytune_llm.training.tracking.wandb; sys.exit(bool({unwanted} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_steps_that_are_logged_again_are_ignored(tmp_path: Path) -> None:
    run = OFFLINE.start(info(tmp_path))
    for step, value in ((4, 1.0), (5, 2.0), (4, 3.0), (5, 4.0), (6, 5.0)):
        run.log(step, {"train/loss": value} if step != 5 or value == 2.0 else {"train/grad_norm": value})
    run.finish({}, failed=False)
    (file,) = files(tmp_path)
    assert [(line["step"], line["train/loss"]) for line in recorded(file).history] == [(4, 1.0), (5, 2.0), (6, 5.0)]
