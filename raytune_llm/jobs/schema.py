"""The jobs: what each command takes, and which class each command's config becomes (JOBS).

Read this first. Values are in conf/*.yaml; the string below each field gives its meaning, unit and range. Components
that a config group chooses (method, model, data, adapter, tracking, sweep, serve) are typed where they live. A field's
type decides what its YAML becomes (stores/components.py), so all of them are imported at runtime; none imports Ray,
torch or Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from raytune_llm.annotation.filters import Annotation
from raytune_llm.annotation.prompt import Prompt
from raytune_llm.annotation.teachers.base import Teacher
from raytune_llm.data.config import Data
from raytune_llm.errors import check_name, require
from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.actions import ControlAction, RegistryAction
from raytune_llm.jobs.comparison import Evaluation, Promote
from raytune_llm.methods.base import Method
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.models.base import Base
from raytune_llm.service.config import Service
from raytune_llm.serving.deploy.config import Serve
from raytune_llm.stores.locations import FOLDER, LOCATION
from raytune_llm.sweep.axes import flat
from raytune_llm.sweep.space import Sweep
from raytune_llm.training.config import Scaling, TrialConfig, Tuning, with_values
from raytune_llm.training.tracking.base import Tracker


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every job has."""

    home: str = field(metadata=FOLDER)
    """Folder or URI (s3://, gs://) that holds runs/ and registry/; must be shared by all nodes of a cluster."""
    seed: int
    """Seeds data order, initial adapters, dropout and bootstrap."""

    @property
    def registry_dir(self) -> str:
        """Where versions are kept."""
        return f"{self.home}/registry"


@dataclass(frozen=True, kw_only=True)
class RunJob(Job):
    """A job that leaves a folder behind."""

    name: str
    """Names the tuned model in the registry and its runs' folder: letters, digits, '.', '_', '-'."""
    run: str
    """Names this run's folder below runs/<name>/; the time by default. Naming an unfinished run resumes it."""
    allow_modules: list[str]
    """Python modules whose functions this job may call; what a card names is never called unless it is listed here."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("run", self.run)

    @property
    def run_dir(self) -> str:
        """Where this job writes: metrics, tables, checkpoints."""
        return f"{self.home}/runs/{self.name}/{self.run}"


@dataclass(frozen=True, kw_only=True)
class DataJob(Job):
    """A job with records, and a method and base to read them for."""

    model: Base
    data: Data
    method: Method
    evaluation: Evaluation

    @property
    def scores_drift(self) -> bool:
        """Whether each evaluation of its trials measures how far they are from the base."""
        return self.evaluation.drift and not self.method.needs.score

    @property
    def why_no_drift(self) -> str:
        """What keeps it from that, for messages."""
        return "a reward model gives no answers" if self.evaluation.drift else "evaluation.drift=false measures none"


@dataclass(frozen=True, kw_only=True)
class CheckJob(DataJob):
    """Is the data sound for this method and base? Nothing is trained, no accelerator is touched."""

    report: str | None = field(metadata=FOLDER)
    """Folder or URI that gets report.json and report.html, also when the data are refused; null = a new one below
    home/checks."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(RunJob, DataJob):
    """One tuning run: checked, trained with early stopping, compared with the base, published to the registry."""

    teacher: Teacher
    """Annotates data.train before anything else, as jobs/annotate.py does; none by default."""
    prompt: Prompt
    annotation: Annotation
    adapter: Adapter
    tuning: Tuning
    scaling: Scaling
    tracking: dict[str, Tracker]
    """Trackers in addition to metrics.jsonl, which is always written."""
    promote: Promote
    plan: bool
    """Show what the job will take (trials, tokens, memory, time, cost), from a few rehearsed steps, and end; nothing is
    kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = self.promote.max_drift
        require(bound is None or self.scores_drift, "promote.max_drift", bound, f"null: {self.why_no_drift}")

    @property
    def kind(self) -> str:
        """The registry's kind of what this job makes: adapter, model or reward."""
        return "reward" if self.method.needs.score else self.adapter.kind

    @property
    def drives_ray_train(self) -> bool:
        """Whether its trials, or stages before them, are jobs of Ray Train."""
        return True

    @property
    def keeps_records(self) -> bool:
        """Whether its trials keep what their metric is of each eval record."""
        return False

    def trial_config(self, better: Better | None = None, answering: Answering | None = None) -> TrialConfig:
        """What its trials need of it; to train them also the direction of method.metric and what they answer for it,
        which `prepare` finds."""
        return TrialConfig(
            name=self.name,
            run=self.run,
            home=self.home,
            seed=self.seed,
            allow_modules=tuple(self.allow_modules),
            model=self.model,
            method=self.method,
            data=self.data.mixture,
            data_name=self.data.name,
            adapter=self.adapter,
            tuning=self.tuning,
            scaling=self.scaling,
            tracking=self.tracking,
            eval_batch_size=self.evaluation.batch_size,
            better=better,
            answering=answering,
            keeps_records=self.keeps_records,
        )

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """This job with dotted keys replaced, e.g. {"tuning.steps": 50}. Raises InputError for an unknown key."""
        return with_values(self, values)


@dataclass(frozen=True, kw_only=True)
class SweepJob(TrainJob):
    """Many tuning runs, searched and stopped early by Ray Tune; the winner compared, published and perhaps deployed."""

    sweep: Sweep
    serve: Serve

    @property
    def drives_ray_train(self) -> bool:
        key = "scaling.num_workers"
        given = [dict(flat(point)).get(key, 1) for point in self.sweep.first]
        axis = self.sweep.axes().get(key)
        numbers = [self.scaling.num_workers, *given, *(axis.candidates if axis else ())]
        return max(numbers) > 1 or bool(self.method.needs.stages)

    @property
    def keeps_records(self) -> bool:
        return self.sweep.stop_when_unresolvable


@dataclass(frozen=True, kw_only=True)
class ImportOpenAIJob(SweepJob):
    """What files that were made for OpenAI's fine-tuning are, the sweep for each, and whether a version reaches the old
    model's answers. data.train names the files, or a folder of them."""

    start: bool
    """Run the sweep for data.train, which then is one file."""
    answers: str | None = field(metadata=LOCATION)
    """Location of the old model's answers to a test set, the bar for the new version: records with a prompt (messages,
    prompt or input), an answer and, where known, the right one (reference, ideal, expected …); null = none."""
    version: str | None
    """Registry reference that is compared with the answers: NAME, NAME@champion or NAME@3; adapter=… means the same;
    null = what start=true publishes."""
    tolerance: float
    """How much worse than the old answers, on the metric that decides, still reaches the bar; ≥ 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tolerance >= 0, "tolerance", self.tolerance, "≥ 0")


@dataclass(frozen=True, kw_only=True)
class AnnotateJob(RunJob):
    """A teacher writes rationales, and labels where none are given; its answers are kept and never requested twice."""

    data: Data
    """data.train is annotated."""
    teacher: Teacher
    prompt: Prompt
    annotation: Annotation
    output: str | None = field(metadata=FOLDER)
    """JSONL to write, which data.train= of a tuning job takes; null = train.jsonl in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(RunJob):
    """Base against tuned on a data set, with confidence intervals."""

    version: str
    """Registry reference: NAME, NAME@champion or NAME@3; adapter=… means the same."""
    data: Data
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class ServeJob(Job):
    """An OpenAI-compatible endpoint for tuned models that share one base."""

    version: str
    """Registry references, comma-separated: NAME, NAME@champion, NAME@3; the first decides the base. adapter=…
    means the same."""
    serve: Serve


@dataclass(frozen=True, kw_only=True)
class ServiceJob(Job):
    """A tuning service: files, jobs and chats by HTTP, in OpenAI's and Vertex's words."""

    service: Service
    serve: Serve
    """How its chats are answered."""


@dataclass(frozen=True, kw_only=True)
class RegistryJob(Job):
    """The registry of tuned models: list them, show one, set an alias, roll back."""

    action: RegistryAction
    """list: all versions; show: one card; alias: name a version; rollback: champion becomes the previous champion
    again."""
    version: str | None
    """Registry reference for show and alias (NAME@3), NAME for rollback."""
    alias: str
    """The alias that action=alias sets."""

    def __post_init__(self) -> None:
        needs = "NAME for rollback, NAME@3 for show and alias"
        require(self.action is RegistryAction.list or self.version is not None, "version", self.version, needs)


@dataclass(frozen=True, kw_only=True)
class ControlJob(Job):
    """Look at runs from another shell or machine, and have a running sweep stop, clone, extend, pause or end."""

    action: ControlAction | None
    """list: the run's trials; show: one of them; jobs: all runs below home; stop: a trial, or all below a quantile;
    clone: a trial from another one's checkpoint; extend: more of the space; pause: give the devices back until resume;
    cancel: end the run, a train run too, without a version. null = list where run is given, else jobs."""
    run: str | None
    """NAME/RUN, as below home/runs; for all actions but jobs."""
    name: str | None
    """For jobs: only the runs of this name; null = all."""
    trial: str | None
    """A trial's id; for show, stop and clone."""
    quantile: float | None
    """For stop: the running trials whose best is worse than this quantile of all trials' bests; 0.5 keeps the better
    half. ≥ 0 and < 1."""
    values: dict[str, Any]
    """For clone: what differs from the trial, values.KEY=VALUE."""
    space: dict[str, Any]
    """For extend: what joins the space, space.KEY=[…], as in sweep.space."""
    timeout_seconds: float
    """How long the run's answer is waited for; ≥ 0. A command stays in effect when none came."""
    ray_address: str | None
    """For cancel of a train run that was submitted to a Ray cluster: its job server, as http://HOST:8265; null = the
    one that the run has noted."""

    def __post_init__(self) -> None:
        require(
            self.run is not None or self.asked is ControlAction.jobs, "run", self.run, "NAME/RUN; action=jobs lists"
        )
        shows = self.asked is ControlAction.show
        require(self.trial is not None or not shows, "trial", self.trial, "a trial's id; action=list shows all")
        require(self.timeout_seconds >= 0, "timeout_seconds", self.timeout_seconds, "≥ 0")

    @property
    def asked(self) -> ControlAction:
        return self.action or (ControlAction.jobs if self.run is None else ControlAction.list)


JOBS: dict[str, type[Job]] = {
    "check": CheckJob,
    "import_openai": ImportOpenAIJob,
    "annotate": AnnotateJob,
    "train": TrainJob,
    "sweep": SweepJob,
    "evaluate": EvaluateJob,
    "serve": ServeJob,
    "service": ServiceJob,
    "registry": RegistryJob,
    "control": ControlJob,
    "demo": SweepJob,
}
"""The class of each command's job; conf/<command>.yaml holds its values."""
