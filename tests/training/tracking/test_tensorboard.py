"""TensorBoard's own reader finds each step once."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from raytune_llm.errors import InputError
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.base import RunInfo
from raytune_llm.training.tracking.tensorboard import TensorBoard

OBJECTIVE = Objective("eval/loss", lower_is_better=True)


def info(directory: str, from_step: int = 0) -> RunInfo:
    return RunInfo(
        name="trial-1", group=None, config={}, directory=directory, from_step=from_step, home="", objective=OBJECTIVE
    )


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def log(folder: Path, steps: range, offset: float, from_step: int = 0) -> None:
    run = TensorBoard(flush_seconds=1).start(info(str(folder), from_step))
    for step in steps:
        run.log(step, {"train/loss": step + offset, "eval/loss": 0.5})
    run.finish({}, failed=False)


def test_scalars(tmp_path: Path) -> None:
    log(tmp_path, range(1, 4), 0.25)
    assert scalars(tmp_path, "train/loss") == [(1, 1.25), (2, 2.25), (3, 3.25)]
    assert scalars(tmp_path, "eval/loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]


@pytest.mark.parametrize("from_step", [0, 2])
def test_a_resumed_run_forgets_the_steps_it_repeats(tmp_path: Path, from_step: int) -> None:
    log(tmp_path, range(5), 0.25)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("tfevents.", "tfevents.0")))
    log(tmp_path, range(from_step + 1 if from_step else 0, 4), 0.75, from_step)
    before = [(step, step + 0.25) for step in range(from_step + 1 if from_step else 0)]
    assert scalars(tmp_path, "train/loss") == before + [(step, step + 0.75) for step in range(len(before), 4)]


def test_the_hparams_tab_has_the_knobs_and_the_best_of_each_run(tmp_path: Path) -> None:
    """Read by the plugin's own parser."""
    one = replace(
        info(str(tmp_path)), group="sweep", config={"steps": 20, "base": "demo:base", "tuning": {"steps": 20}}
    )
    run = TensorBoard(flush_seconds=1).start(one)
    for step, loss in ((1, 2.0), (2, 3.0)):
        run.log(step, {"eval/loss": loss})
    run.finish({"eval/loss": 2.0, "best_step": 1, "ended": "complete"}, failed=False)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    started = metadata.parse_session_start_info_plugin_data(content)
    assert (started.group_name, started.hparams["steps"].number_value) == ("sweep/trial-1", 20)
    assert started.hparams["base"].string_value == "demo:base" and "tuning" not in started.hparams
    assert scalars(tmp_path, "best/eval/loss") == [(2, 2.0)] and scalars(tmp_path, "eval/loss") == [(1, 2.0), (2, 3.0)]


def test_an_object_store_is_refused() -> None:
    with pytest.raises(InputError, match=r"can't write to s3://bucket/run, only to local or shared folders"):
        TensorBoard(flush_seconds=1).start(info("s3://bucket/run"))


def test_it_needs_neither_torch_nor_wandb(tmp_path: Path) -> None:
    code = f"""
import sys
from raytune_llm.training.tracking.base import RunInfo
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.tensorboard import TensorBoard
assert "tensorboard" not in sys.modules
o = Objective("eval/loss", True)
info = RunInfo(name="t", group=None, config={{}}, directory={str(tmp_path)!r}, from_step=0, home="", objective=o)
run = TensorBoard(flush_seconds=1).start(info)
run.log(1, {{"a": 1.0}})
run.finish({{}}, False)
assert not {{"torch", "wandb", "ray", "hydra", "tensorflow"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
