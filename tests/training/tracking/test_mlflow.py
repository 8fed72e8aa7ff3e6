"""MLflow's local store, read back by its client."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from raytune_llm.errors import InputError
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.background import flush
from raytune_llm.training.tracking.base import JobEnd, JobTracker, Line, RunInfo
from raytune_llm.training.tracking.mlflow import MLflow

LOCAL = MLflow(tracking_uri=None, experiment="tuning", tags={"team": "nlp"}, register=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making the tables of a store takes seconds, so all tests share one."""
    return tmp_path_factory.mktemp("home")


def info(home: Path, name: str, group: str | None, from_step: int = 0, lines: Any = ()) -> RunInfo:
    folder = home / "runs" / "tuned" / (group or name)
    return RunInfo(
        name=name,
        group=group,
        config={"steps": 20, "adapter_size": 4, "tuning": {"steps": 20}},
        directory=str(folder if name == group else folder / "trials" / name),
        home=str(home),
        objective=Objective("eval/loss", lower_is_better=True),
        from_step=from_step,
        earlier=tuple(Line(step=step, seconds=1e9 + step, metrics=metrics) for step, metrics in lines),
    )


def client(home: Path) -> Any:
    uri = f"sqlite:///{home}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs(home: Path) -> dict[str, Any]:
    """By name; a name that is there twice fails."""
    store = client(home)
    found = store.search_runs([store.get_experiment_by_name("tuning").experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def history(home: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client(home).get_metric_history(run.info.run_id, metric)]


def test_trials_are_runs_below_their_sweeps_run(home: Path) -> None:
    assert isinstance(LOCAL, JobTracker)
    LOCAL.begin_job(info(home, "a-sweep", "a-sweep"))
    logs = [LOCAL.start(info(home, name, "a-sweep")) for name in ("t1", "t2")]
    for number, run in enumerate(logs, start=1):
        run.log(1, {"train/loss": 2.0 * number})
        run.log(1, {"eval/loss": 1.0 * number})
        run.log(2, {"eval/loss": 3.0})
        run.finish({"eval/loss": 1.0 * number, "best_step": 1, "ended": "complete"}, failed=number == 2)
    flush()
    found = runs(home)
    assert set(found) == {"a-sweep", "t1", "t2"}
    for number, name in enumerate(("t1", "t2"), start=1):
        run = found[name]
        assert run.data.tags["mlflow.parentRunId"] == found["a-sweep"].info.run_id
        assert (run.data.tags["sweep"], run.data.tags["team"], run.data.tags["ended"]) == ("a-sweep", "nlp", "complete")
        assert run.data.params == {"steps": "20", "adapter_size": "4", "tuning.steps": "20"}
        assert history(home, run, "eval/loss") == [(1, number), (2, 3)]
        assert run.data.metrics["best/eval/loss"] == number
        assert run.info.status == ("FAILED" if number == 2 else "FINISHED")


def test_a_resumed_run_has_each_step_once_and_none_is_missing(home: Path) -> None:
    """Killed when the store had steps 1 and 3, of which the checkpoint of step 2 knows nothing; step 2 never came."""
    run = LOCAL.start(info(home, "resumed", None))
    for step in (1, 3):
        run.log(step, {"eval/loss": float(step)})
    flush()
    lines = [(1, {"eval/loss": 1.0}), (2, {"eval/loss": 2.0})]
    run = LOCAL.start(info(home, "resumed", None, from_step=2, lines=lines))
    for step in (3, 4):
        run.log(step, {"eval/loss": float(step)})
    run.finish({}, failed=False)
    flush()
    found = runs(home)["resumed"]
    assert sorted(history(home, found, "eval/loss")) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert found.info.status == "FINISHED"


def job_end(home: Path) -> JobEnd:
    own = info(home, "b-sweep", "b-sweep")
    folder = Path(own.directory)
    (folder / "version").mkdir(parents=True, exist_ok=True)
    (folder / "version" / "adapter.bin").write_bytes(b"weights")
    (folder / "report.html").write_text("report")
    return JobEnd(
        run=own,
        trials=(),
        space={},
        columns=("place", "trial"),
        rows=((1, "t2"), (2, "t1")),
        summary={"eval/loss": 0.25, "version": "tuned@3"},
        model="tuned",
        version="tuned@3",
        folder=str(folder / "version"),
        promoted=True,
        card={"method": "sft"},
        directory=str(folder),
        files=("report.html",),
    )


def test_a_sweeps_run_has_leaderboard_winner_and_reports_and_the_registry_the_winner_once(home: Path) -> None:
    """Also where it is shown a second time, after a kill."""
    for _ in range(2):
        LOCAL.end_job(job_end(home))
    store, found = client(home), runs(home)["b-sweep"]
    assert history(home, found, "eval/loss") == [(0, 0.25)] and found.info.status == "FINISHED"
    names = {file.path for file in store.list_artifacts(found.info.run_id)}
    assert names == {"leaderboard.json", "report.html", "winner", "winner.card.json"}
    (version,) = store.search_model_versions("name = 'tuned'")
    assert version.tags == {"raytune_llm.version": "tuned@3"} and version.run_id == found.info.run_id
    for alias in ("winner", "champion"):
        assert store.get_model_version_by_alias("tuned", alias).version == version.version
    folder = Path(version.source.removeprefix("file://"))
    assert (folder / "adapter.bin").read_bytes() == b"weights"
    table = json.loads((folder.parent / "leaderboard.json").read_text())
    assert table == {"place": [1, 2], "trial": ["t2", "t1"]}


def test_a_home_in_an_object_store_needs_the_address_of_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking.mlflow.tracking_uri=None is not allowed.*s3://b is no local"):
        LOCAL.start(replace(info(tmp_path, "t", None), home="s3://b"))


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package mlflow; install it with: pip install 'raytune-llm\[mlf"):
        LOCAL.begin_job(info(tmp_path, "t", None))


def test_importing_it_imports_no_mlflow() -> None:
    unwanted = {"mlflow", "sqlalchemy", "torch", "ray", "hydra"}
    code = f"import sys, raytune_llm.training.tracking.mlflow; sys.exit(bool({unwanted} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
