"""Weights & Biases: one run a trial, grouped by its sweep, on an axis of optimizer steps.

A run's id depends only on its name, group and folder, so a resumed trial continues its own run. Several runs live in
one process; wandb's global run is not touched. Offline runs need no network and are uploaded later by
`wandb sync`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local
from raytune_llm.training.tracking.base import Run, RunInfo


class Mode(Enum):
    """Where metrics go."""

    online = "online"
    """To the server as they come; needs an API key."""
    offline = "offline"
    """To files, for `wandb sync`."""
    disabled = "disabled"
    """Nowhere."""


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
    """Local folder for W&B's own files; null = the run's folder (a temporary one when that is a URI and mode is
    online)."""

    def __post_init__(self) -> None:
        if self.mode is Mode.online:
            check_api_key()

    def start(self, info: RunInfo) -> Run:
        wandb = load()
        if self.mode is Mode.online:
            check_api_key()
        directory = self._directory(info.directory)
        os.makedirs(directory, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode.value,
            tags=self.tags,
            dir=directory,
            id=run_id(info),
            name=info.name,
            group=info.group,
            job_type="trial" if info.group else "run",
            config=json.loads(to_json(info.config)),
            resume="allow" if info.resumed else None,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return WandBRun(run)

    def _directory(self, run_directory: str) -> str:
        if self.directory is not None or is_local(run_directory):
            return self.directory or run_directory
        if self.mode is Mode.offline:
            raise InputError(
                f"tracking.wandb.directory=null with mode=offline would lose the runs: {run_directory} is not a "
                "local folder; give tracking.wandb.directory=/a/local/folder"
            )
        return tempfile.gettempdir()


class WandBRun:
    """One run; wandb's own step is ours too, so that steps logged again after a resume are ignored."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics}, step=step)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=1 if failed else 0)


def run_id(info: RunInfo) -> str:
    """16 hex digits, the same for every process that logs to this run."""
    return hashlib.sha256("\n".join((info.name, info.group or "", info.directory)).encode()).hexdigest()[:16]


def check_api_key() -> None:
    """Raise InputError when no W&B credentials are found here (environment, netrc or W&B's settings). Makes no
    request."""
    wandb = load()
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        found = wbauth.authenticate_session(host=host, source="raytune_llm", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as error:
        raise InputError(f"tracking.wandb.mode=online: {error}") from error
    if found is None:
        raise InputError(
            "tracking.wandb.mode=online needs an API key and none is set; set WANDB_API_KEY (on a cluster: in the "
            "job's runtime environment), run `wandb login`, or choose tracking.wandb.mode=offline"
        )


def load() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("tracking=wandb needs the package wandb; install it with: pip install wandb") from error
    return wandb
