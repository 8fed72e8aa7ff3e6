"""Offline W&B runs, read back from their files: the same records that `wandb sync` uploads."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError
from wandb_files import files, recorded

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import CONF, load
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.background import flush
from raytune_llm.training.tracking.base import JobEnd, JobTracker, Line, Run, RunInfo
from raytune_llm.training.tracking.wandb import Mode, WandB, run_id

OFFLINE = WandB(
    project="tuning",
    entity=None,
    mode=Mode.offline,
    tags=["demo"],
    directory=None,
    sweep=None,
    upload_winner=True,
)


def info(
    directory: Path, name: str = "trial-1", group: str | None = "a-sweep", from_step: int = 0, lines: Any = ()
) -> RunInfo:
    return RunInfo(
        name=name,
        group=group,
        config={"steps": 50, "tuning": {"steps": 50, "learning_rate_multiplier": 1.0}, "mode": Mode.offline},
        directory=str(directory),
        home=str(directory),
        objective=Objective("eval/loss", lower_is_better=True),
        from_step=from_step,
        earlier=tuple(Line(step=step, seconds=0.0, metrics=metrics) for step, metrics in lines),
    )


def finished(run: Run, summary: Any, *, failed: bool) -> None:
    run.finish(summary, failed=failed)
    flush()


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_two_trials_of_a_sweep_side_by_side(tmp_path: Path) -> None:
    infos = [info(tmp_path / name, name) for name in ("trial-1", "trial-2")]
    runs = [OFFLINE.start(one) for one in infos]
    for step in (1, 2):
        for number, run in enumerate(runs, start=1):
            run.log(step, {"train/loss": number / step})
    runs[0].log(2, {"eval/loss": 0.5})
    for number, run in enumerate(runs, start=1):
        finished(run, {"eval/loss": number / 4, "ended": "complete"}, failed=number == 2)

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
        assert (found.summary["eval/loss"], found.summary["ended"]) == (number / 4, "complete")
        assert found.exit_code == (1 if number == 2 else 0)
    assert recorded(files(tmp_path / "trial-1")[0]).history[1]["eval/loss"] == 0.5


def test_a_resumed_trial_is_one_file_with_each_step_once(tmp_path: Path) -> None:
    """Killed after step 3, of which its checkpoint of step 2 knows nothing: step 3 is logged again."""
    earlier = [(1, {"train/loss": 1.0}), (2, {"train/loss": 2.0})]
    for one, steps in ((info(tmp_path), (1, 2, 3)), (info(tmp_path, from_step=2, lines=earlier), (3, 4))):
        run = OFFLINE.start(one)
        for step in steps:
            run.log(step, {"train/loss": float(step)})
        finished(run, {}, failed=False)
    (file,) = files(tmp_path)
    found = recorded(file)
    assert [(line["step"], line["train/loss"]) for line in found.history] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert found.run.resume and found.run.run_id == run_id(info(tmp_path))


def test_the_summary_is_what_was_last_set_not_the_last_value(tmp_path: Path) -> None:
    run = OFFLINE.start(info(tmp_path))
    for step, loss, best in ((1, 3.0, 3.0), (2, 2.0, 2.0), (3, 5.0, 2.0)):
        run.log(step, {"eval/loss": loss})
        run.summarize({"eval/loss": best, "best_step": min(step, 2)})
    finished(run, {}, failed=False)
    summary = recorded(files(tmp_path)[0]).summary
    assert (summary["eval/loss"], summary["best_step"]) == (2.0, 2)


def test_runs_can_join_a_sweep_that_exists(tmp_path: Path) -> None:
    finished(replace(OFFLINE, sweep="k3x9").start(info(tmp_path)), {}, failed=False)
    found = recorded(files(tmp_path)[0]).run
    assert (found.sweep_id, found.run_id, found.project) == ("k3x9", run_id(info(tmp_path)), "tuning")


def job_end(folder: Path, group: str | None = "a-sweep") -> JobEnd:
    """Of a sweep with two trials."""
    (folder / "version").mkdir(parents=True, exist_ok=True)
    (folder / "version" / "adapter.bin").write_bytes(b"weights")
    (folder / "report.html").write_text("<p>report</p>")
    own = info(folder, "a-sweep", group)
    return JobEnd(
        run=replace(own, config={"goal": "minimize", "job": "tuned"}),
        trials=tuple(info(folder / "trials" / name, name) for name in ("t1", "t2")),
        space={"adapter_size": {"values": [1, 4]}, "rate": {"min": 0.1, "max": 1.0, "distribution": "log_uniform"}},
        columns=("place", "trial", "adapter_size", "eval/loss"),
        rows=((1, "t2", 4, 0.25), (2, "t1", None, 0.5)),
        summary={"eval/loss": 0.25, "version": "tuned@3"},
        model="tuned",
        version="tuned@3",
        folder=str(folder / "version"),
        promoted=True,
        card={"method": "sft", "metrics": {"eval/loss": 0.25}},
        directory=str(folder),
        files=("report.html",),
    )


def test_a_sweeps_own_run_shows_leaderboard_winner_and_reports_once(tmp_path: Path) -> None:
    """Also where it is shown a second time, after a kill."""
    assert isinstance(OFFLINE, JobTracker)
    for _ in range(2):
        OFFLINE.end_job(job_end(tmp_path))
    (file,) = files(tmp_path)
    found = recorded(file)
    assert (found.run.job_type, found.run.run_group, found.run.display_name) == ("sweep", "a-sweep", "a-sweep")
    assert found.summary["eval/loss"] == 0.25 and found.summary["version"] == "tuned@3"
    (model,) = [artifact for artifact in found.artifacts if artifact.type == "model"]
    assert model.name == "tuned" and {"winner", "champion", "version-3"} <= set(model.aliases)
    assert json.loads(model.metadata)["method"] == "sft"
    assert [entry.path for entry in model.manifest.contents] == ["adapter.bin"]
    assert "report.html" in found.files and (file.parent / "files" / "report.html").read_text() == "<p>report</p>"
    table = json.loads(next((file.parent / "files" / "media" / "table").glob("leaderboard*.json")).read_text())
    assert table["columns"][2:] == ["adapter_size", "eval/loss"]
    assert table["data"] == [[1, "t2", 4, 0.25], [2, "t1", None, 0.5]]


def test_large_winners_can_stay_where_they_are(tmp_path: Path) -> None:
    replace(OFFLINE, upload_winner=False).end_job(job_end(tmp_path))
    (model,) = [artifact for artifact in recorded(files(tmp_path)[0]).artifacts if artifact.type == "model"]
    assert [entry.ref for entry in model.manifest.contents] == [f"file://{tmp_path}/version/adapter.bin"]


def test_a_file_makes_a_sweep_of_the_runs_that_there_are(tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    end = job_end(tmp_path)
    OFFLINE.end_job(end)
    found = load_sweep_config(str(tmp_path / "wandb-sweep.yaml"))
    assert found["metric"] == {"name": "eval/loss", "goal": "minimize"}
    assert found["parameters"]["rate"]["distribution"] == "log_uniform_values"
    first = (tmp_path / "wandb-sweep.yaml").read_text().splitlines()[0]
    assert all(f"-R {run_id(trial)}" in first for trial in end.trials)


def test_the_end_of_a_single_run_is_in_that_run(tmp_path: Path) -> None:
    OFFLINE.end_job(replace(job_end(tmp_path, group=None), rows=(), trials=(), columns=()))
    found = recorded(files(tmp_path)[0])
    assert found.run.run_id == run_id(info(tmp_path, "a-sweep", None)) and found.run.resume
    assert not (tmp_path / "wandb-sweep.yaml").exists()


AGENT = {"WANDB_SWEEP_ID": "k3x9", "WANDB_RUN_ID": "of-agent", "WANDB_PROJECT": "agents", "WANDB_ENTITY": "team"}


def test_under_an_agent_the_run_is_the_agents(tmp_path: Path) -> None:
    """In a process of its own, for wandb reads the environment once."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_wandb import OFFLINE, info, finished, Path
run = OFFLINE.start(info(Path({str(tmp_path)!r}), group=None))
run.log(1, {{"eval/loss": 1.0}})
finished(run, {{}}, failed=False)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **AGENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = recorded(files(tmp_path)[0]).run
    assert (found.run_id, found.sweep_id, found.project, found.entity) == ("of-agent", "k3x9", "agents", "team")
    assert "Ignoring" not in done.stdout + done.stderr


def test_an_agent_does_not_drive_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not OFFLINE.takes_one_run
    monkeypatch.setenv("WANDB_SWEEP_ID", "k3x9")
    assert OFFLINE.takes_one_run
    with pytest.raises(InputError, match=r"WANDB_SWEEP_ID is set, as by `wandb agent`, which drives jobs/train.py"):
        OFFLINE.begin_job(info(tmp_path, "a-sweep"))


def agents_command(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The command line that W&B's agent makes of conf/wandb/sweep.yaml for a run with these parameters."""
    from wandb import wandb_agent

    made: list[list[str]] = []

    def process(command: list[str], **_: Any) -> SimpleNamespace:
        made.append(command)
        return SimpleNamespace()

    monkeypatch.setattr(wandb_agent, "AgentProcess", process)
    for name, value in {**AGENT, "WANDB_DIR": str(folder), "WANDB_SWEEP_PARAM_PATH": ""}.items():
        monkeypatch.setenv(name, value)
    sweep = yaml.safe_load((CONF / "wandb" / "sweep.yaml").read_text())
    agent = SimpleNamespace(
        _sweep_command=sweep["command"], _in_jupyter=False, _function=None, _forward_signals=False, _run_processes={}
    )
    given = {name: {"value": value} for name, value in arguments.items()}
    command = {"type": "run", "run_id": "of-agent", "program": sweep["program"], "args": given}
    wandb_agent.Agent._command_run(agent, command)
    return made[0]


def test_the_command_of_wandbs_agent_is_a_job_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load((CONF / "wandb" / "sweep.yaml").read_text())
    values = {"tuning.learning_rate_multiplier": 0.37, "tuning.adapter_size": 16, "tuning.batch_size": 4}
    assert set(values) | {"tuning.steps"} == set(sweep["parameters"])
    command = agents_command({**values, "tuning.steps": 200}, monkeypatch, tmp_path)
    assert command[:3] == ["/usr/bin/env", "python", "jobs/train.py"]
    job = load("train", [*command[3:], "tracking.wandb.mode=offline"])
    assert (job.run, job.tuning.learning_rate_multiplier, job.tuning.adapter_size) == ("of-agent", 0.37, 16)
    assert sweep["metric"] == {"name": job.method.metric, "goal": "minimize"}
    assert (CONF.parent / sweep["program"]).is_file()


def test_the_id_tells_runs_apart(tmp_path: Path) -> None:
    one = info(tmp_path)
    others = [replace(one, name="trial-2"), replace(one, group="b-sweep"), replace(one, directory="/elsewhere")]
    assert len({run_id(each) for each in (one, *others)}) == 4
    assert run_id(one) == run_id(replace(one, from_step=50, config={}))
    assert run_id(one).isalnum() and len(run_id(one)) == 16


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run = replace(OFFLINE, mode=Mode.disabled).start(info(tmp_path, group=None))
    run.log(1, {"train/loss": 1.0})
    finished(run, {}, failed=False)
    assert files(tmp_path) == []


def test_the_directory_can_be_elsewhere(tmp_path: Path) -> None:
    run = replace(OFFLINE, directory=str(tmp_path / "there")).start(info(tmp_path / "run"))
    finished(run, {}, failed=False)
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
    values |= {"sweep": None, "upload_winner": True}
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
    finished(run, {}, failed=False)
    (file,) = files(tmp_path)
    assert [(line["step"], line["train/loss"]) for line in recorded(file).history] == [(4, 1.0), (5, 2.0), (6, 5.0)]
