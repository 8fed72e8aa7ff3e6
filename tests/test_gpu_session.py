"""The prepared run on a GPU, on the CPU: every step gives its figures, a failing or hanging one stops nothing, and what
is possible on paper is computed right."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_session
import pytest
from gpu_session import STEPS, Planned, Session, marked
from gpu_steps import paper, table, timing, whole_sweep
from gpu_steps.step import append, read

ROOT = Path(__file__).parents[1]


ON_RAY = ("sweep", "lost-actor", "commands")
"""Steps that start Ray, some several times; they are tests of `make soak`."""


def smoke(tmp_path, names):
    """The table's rows, each with its cells, of these steps of tiny shapes, which must end well."""
    command = [sys.executable, "benchmarks/gpu_session.py", "--smoke", "--steps", ",".join(names)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = read(tmp_path / "results.jsonl")
    ended = {line["step"]: line["status"] for line in lines if "status" in line}
    assert ended == dict.fromkeys(names, "ok"), (tmp_path / "log.txt").read_text()[-4000:]
    assert {line["step"] for line in lines if "status" not in line} == set(ended)
    printed = (tmp_path / "table.md").read_text()
    assert printed in done.stdout and "tiny shapes: the figures mean nothing" in done.stdout
    return {line.split(" | ")[0]: line.split(" | ")[1:] for line in printed.splitlines()[2:]}


@pytest.mark.slow
def test_steps_on_ray_give_their_figures(tmp_path):
    cells = smoke(tmp_path, ON_RAY)
    (row,) = [row for name, row in cells.items() if name.startswith("| a pack actor")]
    assert row[-1] == "yes |", row


def test_every_step_gives_its_figures_and_the_table_is_printed(tmp_path):
    """Of two steps that differ in their shape alone, which is tiny here, one."""
    by_module = {step.module: step.name for step in reversed(STEPS)}
    assert {step.name for step in STEPS} - set(by_module.values()) == {"packed-8b"}
    cells = smoke(tmp_path, [name for name in by_module.values() if name not in ON_RAY])
    for what in (
        "fp32 gradients",
        "bf16: error",
        "a trial alone",
        "a step that runs out",
        "served adapters",
        "the same with large",
        "the same in fp32",
        "mixed adapters: nats off without CUDA",
        "mixed adapters: nats off without grouped",
    ):
        (row,) = [row for name, row in cells.items() if name.startswith(f"| {what}")]
        assert row[-1] == "yes |", row
    assert sum(table.NOT_MEASURED in row for row in cells.values()) == 24


@pytest.fixture
def session(tmp_path):
    def make(seconds=60.0, code="", smoke=False):
        (tmp_path / "made_up.py").write_text(code)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return Session(tmp_path, tmp_path, smoke, time.monotonic() + seconds, environment)

    return make


def last(session):
    return read(session.results)[-1]


def test_a_step_that_fails_says_why(session):
    run = session(code="print('so far'); raise RuntimeError('no luck')")
    run.run(Planned("one", "made_up", 1, 30))
    assert last(run)["status"] == "failed (1)" and "RuntimeError: no luck" in last(run)["detail"]
    run.run(Planned("two", "made_up", 1, 30))
    assert [line["step"] for line in read(run.results)] == ["one", "two"]


def test_tiny_shapes_have_longer(session):
    run = session(code="import time; time.sleep(2)", smoke=True)
    run.run(Planned("slow", "made_up", 1, 0.5))
    assert last(run)["status"] == "ok"


def test_a_step_that_hangs_ends_with_all_its_processes(session, tmp_path):
    code = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
pathlib.Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
time.sleep(300)
"""
    run = session(code=code)
    run.run(Planned("hangs", "made_up", 1, 3))
    assert last(run)["status"] == "timed out" and 3 <= last(run)["seconds"] < 30
    for _ in range(50):  # the kernel takes a moment
        if not marked(f"hangs-{os.getpid()}"):
            break
        time.sleep(0.1)
    assert not marked(f"hangs-{os.getpid()}") and (tmp_path / "child").exists()


def test_what_no_longer_fits_is_skipped(session):
    run = session(seconds=1.0)
    run.run(Planned("late", "made_up", 30, 60))
    assert last(run)["status"] == "skipped"


def test_ray_is_passed_the_gpu_that_it_does_not_count(session):
    run = session()
    append(run.results, {"step": "machine", "device": "a GPU"})
    append(run.results, {"step": "machine", "ray_gpus": 0})
    gpu_session.count_gpu(run)
    assert json.loads(run.environment["RAY_OVERRIDE_RESOURCES"]) == {"GPU": 1}


def test_steps_are_chosen_by_name():
    assert [step.name for step in gpu_session.chosen("sweep,machine")] == ["machine", "sweep"]
    with pytest.raises(SystemExit, match="nothing; allowed: machine, correct"):
        gpu_session.chosen("nothing")


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    append(tmp_path / "results", {"step": "one"})
    with (tmp_path / "results").open("a") as file:
        file.write('{"step": "tw')
    assert read(tmp_path / "results") == [{"step": "one"}]
    assert read(tmp_path / "none") == []


def test_llama_shapes_have_the_published_sizes():
    one, eight = paper.SHAPES["1b"], paper.SHAPES["8b"]
    assert one.linear_weights + one.hidden * one.vocabulary == pytest.approx(1.236e9, rel=1e-3)
    assert eight.linear_weights + 2 * eight.hidden * eight.vocabulary == pytest.approx(8.03e9, rel=1e-3)
    assert eight.adapter_scalars(16) == pytest.approx(41.94e6, rel=1e-3)


def test_the_floor_of_a_packed_step():
    milliseconds = 1e3 * paper.step_seconds(paper.SHAPES["1b"], 1, 128, slots=16, lora_rank=16)
    by_hand = 2048 * (4 * 973e6 + 6 * 11.27e6 + 4 * 2048 * 128256 + 6 * 128 * 2048 * 16) / 800e12
    assert milliseconds == pytest.approx(1e3 * by_hand + 1e3 * 16 * 11.27e6 * 34 / 3e12, rel=2e-3)
    slower = paper.step_seconds(paper.SHAPES["1b"], 1, 128, slots=16, lora_rank=16, matmul_rate=400e12)
    assert 1.8 < 1e3 * slower / milliseconds < 2


def test_the_ceiling_of_decoding():
    speed = paper.decode_tokens_per_second(
        paper.SHAPES["1b"], rows=64, adapters=64, lora_rank=16, context=512, bandwidth=3.35e12
    )
    assert speed == pytest.approx(43e3, rel=0.01)


def test_an_aim_is_met_missed_or_open():
    row = table.Row("what", "one", table.number("speed"), "9", at_least=2.0)
    assert row.cells([]) == ["what", "not measured", "9", "≥ 2", ""]
    assert row.cells([{"step": "one", "speed": 2.5}])[-1] == "yes"
    assert row.cells([{"step": "one", "speed": 1.5}, {"step": "two", "speed": 9.0}])[-1] == "no"
    broken = table.Row("what", "one", table.share("part", "whole"), at_most=1.0)
    assert broken.cells([{"step": "one", "part": 1.0, "whole": 0.0}])[1] == "not measured"


def test_figures_of_a_load_are_its_own():
    lines = [
        {"step": "packed-1b", "load": load, "packed_seconds": s, "solo_seconds": 1.0}
        for load, s in (("8×128", 4.0), ("1×128", 1.0))
    ]
    rows = {row[0]: row[1] for row in (r.cells(lines) for r in table.packed_rows())}
    assert rows["1 B, 8×128: sixteen solo PEFT steps over one packed step"].startswith("4.0×")
    assert rows["1 B, 1×128: sixteen solo PEFT steps over one packed step"].startswith("16.0×")


def test_trials_that_were_not_run_cost_what_later_waves_cost():
    found = {"started": 100.0, "ends": [131.0, 130.0, 132.0, 134.0, 150.0, 151.0, 153.0, 154.0]}
    assert whole_sweep.all_waves(found, at_once=4, trials=16) == 34.0 + 3 * 20.0
    assert whole_sweep.all_waves({"started": 0.0, "ends": [10.0]}, at_once=1, trials=2) == 20.0


def test_overlapping_kernels_count_once():
    assert timing.covered([(0.0, 2.0), (1.0, 3.0), (1.5, 1.7), (5.0, 6.0)]) == 4.0


def test_the_page_about_gpus_has_every_row_and_step():
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| ")}
    for row in table.ROWS:
        _, _, on_paper, aim, _ = row.cells([])
        assert rows[f"| {row.what}"].split(" | ")[2:4] == [on_paper, aim], "make it anew: gpu_session.py --table"
    for step in STEPS:
        assert f"`{step.name}`" in page, step.name
