"""Weights & Biases: one run a trial, grouped by its sweep, on an axis of optimizer steps, and one run of the sweep
itself, with its leaderboard, its winner as an artifact and its reports.

A run's id is a hash of its name, group and folder, so a resumed trial continues its run. One process can have several
runs; wandb's global run isn't touched. Offline runs need no network and are uploaded later by `wandb sync`; one that is
resumed is written anew from metrics.jsonl, for W&B can't append to a file: so each run is one file and has each step
once. Under an agent of a W&B sweep (conf/wandb/sweep.yaml) the run is the agent's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from raytune_llm.compat import has_wandb_credentials
from raytune_llm.errors import InputError
from raytune_llm.models.loading import fetched
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage
from raytune_llm.training.tracking.background import WORKER, BackgroundRun
from raytune_llm.training.tracking.base import JobEnd, Run, RunInfo, Value

AGENTS_SWEEP, AGENTS_RUN = "WANDB_SWEEP_ID", "WANDB_RUN_ID"
"""Set by `wandb agent` for what it runs: its sweep, and the id of the run that it expects."""
SWEEP_FILE = "wandb-sweep.yaml"
"""In a sweep's folder: what makes a W&B sweep of its runs."""


class Mode(Enum):
    """The destination of metrics."""

    online = "online"
    """The server, as they are logged; needs an API key."""
    offline = "offline"
    """Files, for `wandb sync`."""
    disabled = "disabled"
    """None."""


@dataclass(frozen=True, kw_only=True)
class WandB:
    """Logs to Weights & Biases."""

    project: str
    """The W&B project that gets the runs."""
    entity: str | None
    """User or team that owns the project; null = the API key's default."""
    mode: Mode
    """online, offline or disabled."""
    tags: list[str]
    """Labels of every run."""
    directory: str | None
    """Local folder of W&B's files; null = the run's folder (a temporary one when that is a URI and mode is online)."""
    sweep: str | None
    """Id of a W&B sweep that exists, to which all runs are added; null = none: runs are grouped, and
    wandb-sweep.yaml in the sweep's folder makes a W&B sweep of them. Under `wandb agent` it is the agent's."""
    upload_winner: bool
    """Whether the artifact of a published version holds its files; else it refers to where they are."""

    def __post_init__(self) -> None:
        if self.mode is Mode.online:
            check_api_key()

    @property
    def takes_one_run(self) -> bool:
        """As an agent's job, whose run has the id that the agent expects."""
        return AGENTS_SWEEP in os.environ

    def start(self, info: RunInfo) -> Run:
        self._check(info)
        return BackgroundRun(partial(self._start, info))

    def begin_job(self, info: RunInfo) -> None:
        self._check(info)
        WORKER.put(load)  # needed at the end, while nothing else waits

    def end_job(self, end: JobEnd) -> None:
        is_sweep = end.run.group is not None
        if is_sweep and self.mode is Mode.offline:
            remove_run(self._directory(end.run.directory), run_id(end.run))
        run, failed = self._init(end.run, job_type="sweep" if is_sweep else "run", continues=not is_sweep), True
        try:
            self._show(run, end)
            failed = False
        finally:
            run.finish(exit_code=1 if failed else 0)

    def _show(self, run: Any, end: JobEnd) -> None:
        wandb = load()
        if end.rows:
            rows = [[json.loads(to_json(cell)) for cell in row] for row in end.rows]
            run.log({"leaderboard": wandb.Table(columns=list(end.columns), data=rows, allow_mixed_types=True)}, step=0)
            self._write_sweep(end)
        run.summary.update(dict(end.summary))
        self._attach(run, end)
        artifact, aliases = self._winner(end)
        run.log_artifact(artifact, aliases=aliases)

    def _check(self, info: RunInfo) -> None:
        """Raise InputError unless a run can be logged from this machine."""
        if self.mode is Mode.online:
            check_api_key()
        else:
            check_package()
        if AGENTS_SWEEP in os.environ and (info.group is not None or AGENTS_RUN not in os.environ):
            raise InputError(
                f"{AGENTS_SWEEP} is set, as by `wandb agent`, which drives jobs/train.py (conf/wandb/sweep.yaml), not "
                f"sweeps of this project; unset it, and give tracking.wandb.sweep=ID to add runs to a W&B sweep"
            )
        self._directory(info.directory)

    def _start(self, info: RunInfo) -> Run:
        if self.mode is Mode.offline:
            remove_run(self._directory(info.directory), run_id(info))
        run = WandBRun(self._init(info, job_type="trial" if info.group else "run", continues=info.resumed))
        for line in info.earlier:
            run.log(line.step, line.metrics)
        return run

    def _init(self, info: RunInfo, *, job_type: str, continues: bool) -> Any:
        """wandb's run. An agent's run has the id, project and sweep that the agent set in the environment, and doesn't
        take others."""
        wandb = load()
        is_agents = AGENTS_SWEEP in os.environ
        directory = self._directory(info.directory)
        os.makedirs(directory, exist_ok=True)
        sweep = {} if self.sweep is None else {"sweep_id": self.sweep}
        own = {} if is_agents else {"project": self.project, "entity": self.entity, "id": run_id(info)}
        run = wandb.init(
            **own,
            mode=self.mode.value,
            tags=self.tags,
            dir=directory,
            name=None if is_agents else info.name,
            group=info.group,
            job_type=job_type,
            config=json.loads(to_json(info.config)),
            resume="allow" if continues or is_agents else None,
            reinit="create_new",
            # What is installed is read anew for each run, which takes more time than all else.
            settings=wandb.Settings(silent=True, console="off", x_save_requirements=False, **sweep),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step", summary="none")  # the best report's values, not the last
        return run

    def _directory(self, run_directory: str) -> str:
        if self.directory is not None or is_local(run_directory):
            return self.directory or run_directory
        if self.mode is Mode.offline:
            raise InputError(
                f"tracking.wandb.directory=null with mode=offline would lose the runs: {run_directory} is not a "
                "local folder; give tracking.wandb.directory=/a/local/folder"
            )
        return tempfile.gettempdir()

    def _winner(self, end: JobEnd) -> tuple[Any, list[str]]:
        """The published version as an artifact, and its aliases."""
        wandb = load()
        artifact = wandb.Artifact(
            end.model, type="model", description=end.version, metadata=json.loads(to_json(dict(end.card)))
        )
        if not self.upload_winner:
            artifact.add_reference(end.folder if "://" in end.folder else f"file://{end.folder}", checksum=False)
        else:
            with fetched(end.folder) as folder:
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
        number = f"version-{end.version.rpartition('@')[2]}"
        return artifact, ["winner", number, *(["champion"] if end.promoted else [])]

    def _attach(self, run: Any, end: JobEnd) -> None:
        """Show the reports as files of the run."""
        storage = open_storage(end.directory)
        for name in end.files:
            storage.download(name, Path(run.dir, name))
            run.save(str(Path(run.dir, name)), base_path=run.dir, policy="now")

    def _write_sweep(self, end: JobEnd) -> None:
        goal = {"name": end.run.objective.metric, "goal": end.run.config["goal"]}
        known = {"uniform": "uniform", "log_uniform": "log_uniform_values", "int_uniform": "int_uniform"}
        space = {
            key: {**axis, **({"distribution": known[axis["distribution"]]} if "distribution" in axis else {})}
            for key, axis in end.space.items()
        }
        content = {"name": end.run.name, "method": "random", "metric": goal, "parameters": space}
        runs = " ".join(f"-R {run_id(info)}" for info in end.trials)
        owner = f"--entity {self.entity} " if self.entity else ""
        text = f"# wandb sweep {owner}--project {self.project} {runs} {SWEEP_FILE}\n{to_json(content, indent=2)}\n"
        open_storage(end.directory).write(SWEEP_FILE, text.encode())


class WandBRun:
    """One run. wandb's step is the optimizer step, so wandb ignores steps that are logged again after a resume."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics}, step=step)

    def summarize(self, summary: Mapping[str, Value]) -> None:
        self._run.summary.update(dict(summary))

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        self.summarize(summary)
        self._run.finish(exit_code=1 if failed else 0)


def run_id(info: RunInfo) -> str:
    """Equal in every process that logs to this run: 16 hex digits, or what an agent wants."""
    if AGENTS_SWEEP in os.environ and AGENTS_RUN in os.environ:
        return os.environ[AGENTS_RUN]
    return hashlib.sha256("\n".join((info.name, info.group or "", info.directory)).encode()).hexdigest()[:16]


def remove_run(directory: str, id: str) -> None:
    """Remove the files of an offline run, which is about to be written anew."""
    for folder in Path(directory, "wandb").glob(f"offline-run-*-{id}"):
        shutil.rmtree(folder, ignore_errors=True)


def check_api_key() -> None:
    """Raise InputError unless this machine has W&B credentials (environment, netrc or W&B's settings). Contacts no
    server."""
    wandb = load()
    try:
        is_known = has_wandb_credentials()
    except wandb.errors.AuthenticationError as error:
        raise InputError(f"tracking.wandb.mode=online: {error}") from error
    if not is_known:
        raise InputError(
            "tracking.wandb.mode=online needs an API key and none is set; set WANDB_API_KEY (on a cluster: in the "
            "job's runtime environment), run `wandb login`, or choose tracking.wandb.mode=offline"
        )


def check_package() -> None:
    """Raise InputError unless wandb is installed; importing it takes a second, which a thread may spend."""
    if importlib.util.find_spec("wandb") is None:
        raise InputError("tracking=wandb needs the package wandb; install it with: pip install wandb")


def load() -> Any:
    """The package, imported."""
    check_package()
    import wandb

    return wandb
