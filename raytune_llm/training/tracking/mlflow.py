"""MLflow: one run a trial, below the run of its sweep, which gets the leaderboard, the winner and the reports; the
winner is also a version in MLflow's model registry.

Runs are found again by a tag, so a resumed trial continues its own; what the store has of it is not logged again. Needs
the client alone (mlflow-skinny); the local store is an SQLite file in the home, which `mlflow ui` of a full
installation shows. MLflow 3 no longer writes its former store of plain files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from raytune_llm.errors import InputError, require
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage
from raytune_llm.training.tracking.background import BackgroundRun
from raytune_llm.training.tracking.base import JobEnd, Run, RunInfo, Value

KEY, REFERENCE = "raytune_llm.run", "raytune_llm.version"
"""Tags by which runs and registered versions are found again."""
PARENT, GROUP = "mlflow.parentRunId", "sweep"
BEST = "best/"
"""What begins the names of the best report's metrics; MLflow shows the last value of every other one."""
WAIT_SECONDS, POLL_SECONDS = 60.0, 0.5
"""How long a trial waits for the run of its sweep, which the driver makes at its start."""
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 500
"""Of one call to the store, and the length that every kind of store takes."""


@dataclass(frozen=True, kw_only=True)
class MLflow:
    """Logs to MLflow."""

    tracking_uri: str | None
    """MLflow's store: http://HOST:PORT, databricks, sqlite:///FILE …; null = mlflow.db in the home."""
    experiment: str
    """The MLflow experiment that gets the runs; made where there is none."""
    tags: dict[str, str]
    """Tags of every run."""
    register: bool
    """Whether a published version is also registered in the store's model registry, under its own name and number."""

    @property
    def takes_one_run(self) -> bool:
        return False

    def start(self, info: RunInfo) -> Run:
        self._check(info)
        return BackgroundRun(partial(self._start, info))

    def begin_job(self, info: RunInfo) -> None:
        """Make the run of a sweep, which its trials look for."""
        self._check(info)
        if info.group is not None:
            BackgroundRun(partial(self._start, info))

    def end_job(self, end: JobEnd) -> None:
        store = self._store(end.run)
        id = store.run_id(end.run, self.tags)
        numbers = {name: float(value) for name, value in end.summary.items() if not isinstance(value, str)}
        MLflowRun(store, id).log(0, numbers)
        store.client.set_tag(id, REFERENCE, end.version)
        if end.rows:
            table = {name: [row[place] for row in end.rows] for place, name in enumerate(end.columns)}
            store.client.log_text(id, to_json(table), "leaderboard.json")
        for name in end.files:
            with local_file(end.directory, name) as file:
                store.client.log_artifact(id, str(file))
        store.log_winner(id, end, register=self.register)
        store.client.set_terminated(id)

    def _check(self, info: RunInfo) -> None:
        """Raise InputError unless the packages are there and the local store can be written."""
        needed = ["mlflow", *(["sqlalchemy", "alembic"] if self.tracking_uri is None else [])]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"tracking=mlflow needs the package {missing[0]}; install it with: pip install 'raytune-llm[mlflow]'"
            )
        allowed = f"the address of a store: {info.home} is no local or shared folder"
        require(self.tracking_uri is not None or is_local(info.home), "tracking.mlflow.tracking_uri", None, allowed)

    def _start(self, info: RunInfo) -> Run:
        store = self._store(info)
        is_trial = info.group is not None and info.name != info.group
        parent = store.wait_for(sweep_of(info)) if is_trial else None
        run = MLflowRun(store, store.run_id(info, self.tags, parent=parent))
        for line in info.earlier:
            run.log(line.step, line.metrics, seconds=line.seconds)
        return run

    def _store(self, info: RunInfo) -> Store:
        return Store(self.tracking_uri, info.home, self.experiment)


@dataclass(frozen=True)
class Store:
    """MLflow's client with the names of this project."""

    uri: str | None
    home: str
    experiment: str

    @cached_property
    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = f"sqlite:///{self.home}/mlflow.db" if self.uri is None else self.uri
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    @cached_property
    def experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            artifacts = None if self.uri is not None else Path(self.home, "mlflow-artifacts").as_uri()
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=artifacts))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find(self, key: str) -> str | None:
        """The id of the run with this key."""
        found = self.client.search_runs([self.experiment_id], filter_string=f"tags.`{KEY}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def wait_for(self, key: str) -> str:
        """The id of a run that another process makes. Raises RuntimeError when it doesn't come."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := self.find(key)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError("tracking=mlflow: the sweep's run has not been made; see the driver's messages")
            time.sleep(POLL_SECONDS)
        return found

    def run_id(self, info: RunInfo, tags: Mapping[str, str], *, parent: str | None = None) -> str:
        """The id of a run, which is made where there is none."""
        own = key_of(info)
        found = self.find(own)
        if found is not None:
            self.client.update_run(found, status="RUNNING")
            return found
        group = {} if info.group is None else {GROUP: info.group}
        nested = {} if parent is None else {PARENT: parent}
        run = self.client.create_run(self.experiment_id, run_name=info.name, tags={KEY: own, **group, **nested, **tags})
        self._log_params(run.info.run_id, info.config)
        return str(run.info.run_id)

    def _log_params(self, id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in flat(config)]
        for place in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(id, params=params[place : place + MOST_PARAMS])

    def log(self, id: str, values: Sequence[tuple[str, float, int, float]]) -> None:
        """Log metrics: each with its value, step, and seconds since the epoch."""
        from mlflow.entities import Metric

        found = [Metric(name, value, round(1000 * seconds), step) for name, value, step, seconds in values]
        for place in range(0, len(found), MOST_METRICS):
            self.client.log_batch(id, metrics=found[place : place + MOST_METRICS])

    def logged(self, id: str) -> set[tuple[str, int]]:
        """Which metrics a run has of which steps."""
        names = self.client.get_run(id).data.metrics
        return {(name, metric.step) for name in names for metric in self.client.get_metric_history(id, name)}

    def log_winner(self, id: str, end: JobEnd, *, register: bool) -> None:
        """The version's files as an artifact of the run, and a registered version with its aliases."""
        from raytune_llm.models.loading import fetched

        name = "winner"
        with fetched(end.folder) as folder:
            self.client.log_artifacts(id, str(folder), name)
        self.client.log_dict(id, dict(end.card), f"{name}.card.json")
        if not register:
            return
        if not self.client.search_registered_models(f"name = '{end.model}'"):
            self.client.create_registered_model(end.model)
        versions = self.client.search_model_versions(f"name = '{end.model}'")
        version = next((one for one in versions if one.tags.get(REFERENCE) == end.version), None)
        if version is None:
            source = f"{self.client.get_run(id).info.artifact_uri}/{name}"
            version = self.client.create_model_version(
                end.model, source, run_id=id, tags={REFERENCE: end.version}, description=end.version
            )
        for alias in ("winner", *(("champion",) if end.promoted else ())):
            self.client.set_registered_model_alias(end.model, alias, version.version)


class MLflowRun:
    """One run. Each metric has each step once, also after a resume."""

    def __init__(self, store: Store, id: str) -> None:
        self._store, self._id = store, id
        self._logged = store.logged(id)

    def log(self, step: int, metrics: Mapping[str, float], *, seconds: float | None = None) -> None:
        new = {name: value for name, value in metrics.items() if (name, step) not in self._logged}
        self._logged |= {(name, step) for name in new}
        now = time.time() if seconds is None else seconds
        self._store.log(self._id, [(name, value, step, now) for name, value in new.items()])

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        texts = {name: value for name, value in summary.items() if isinstance(value, str)}
        numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, str)}
        step = int(numbers.get("best_step", 0))
        self.log(step, {f"{BEST}{name}": value for name, value in numbers.items()})
        for name, value in texts.items():
            self._store.client.set_tag(self._id, name, value)
        self._store.client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


def key_of(info: RunInfo) -> str:
    """Equal in every process that logs to this run."""
    return hashlib.sha256("\n".join((info.name, info.group or "", info.directory)).encode()).hexdigest()[:16]


def sweep_of(info: RunInfo) -> str:
    """The key of the sweep's run of a trial."""
    assert info.group is not None
    folder = info.directory.rpartition("/trials/")[0]
    return key_of(replace(info, name=info.group, directory=folder))


@contextlib.contextmanager
def local_file(directory: str, name: str) -> Iterator[Path]:
    """A file of a folder or URI under its own name, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="report-") as scratch:
        open_storage(directory).download(name, Path(scratch, name))
        yield Path(scratch, name)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
