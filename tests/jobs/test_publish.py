"""Which versions become champions, and what a version is compared with."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from worlds import write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.evaluation.compare import Verdict, VerdictKind
from raytune_llm.jobs.comparison import Promotion
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import prepare
from raytune_llm.jobs.publish import is_promoted, publish, systems_of
from raytune_llm.stores.registry import Registry
from raytune_llm.training.config import Outcome, Report, Trial

BETTER, ALIKE = (Verdict(kind, "") for kind in (VerdictKind.better, VerdictKind.alike))


@pytest.mark.parametrize(
    ("promotion", "verdicts", "expected"),
    [
        (Promotion.proven, [BETTER, BETTER], True),
        (Promotion.proven, [BETTER, ALIKE], False),
        (Promotion.always, [ALIKE], True),
        (Promotion.never, [BETTER], False),
    ],
)
def test_a_champion_beats_every_other_system_unless_the_job_decides(promotion, verdicts, expected):
    assert is_promoted(promotion, verdicts) is expected


@pytest.fixture
def job(tmp_path):
    train, evaluation = write_records(tmp_path)
    base = write_base(tmp_path / "base", "llama")
    data = [f"data.train={train}", f"data.eval={evaluation}"]
    return load("train", [f"model.name_or_path={base}", *data, f"home={tmp_path}", "name=wit"])


def test_the_base_comes_first_and_the_tuned_model_last(job):
    revision = job.model.facts.revision_hash
    versions = [
        SimpleNamespace(name=name, aliases=aliases, path=f"{name}/{i}", card=card)
        for i, (name, aliases, card) in enumerate(
            [
                ("wit", (), SimpleNamespace(base_revision=revision, kind="adapter", config={"run": "earlier"})),
                (
                    "wit",
                    ("champion",),
                    SimpleNamespace(base_revision=revision, kind="adapter", config={"run": "earlier"}),
                ),
                (
                    "dry",
                    ("champion",),
                    SimpleNamespace(base_revision=revision, kind="adapter", config={"run": "earlier"}),
                ),
            ]
        )
    ]
    registry = SimpleNamespace(list=lambda: versions)
    assert list(systems_of(job, registry, "here").items()) == [("base", None), ("champion", "wit/1"), ("tuned", "here")]
    versions[1].card.config = {"run": job.run}
    assert list(systems_of(job, registry, "here")) == ["base", "tuned"], "what the job itself has published"
    versions[1].card.config, versions[1].card.base_revision = {"run": "earlier"}, "another"
    assert list(systems_of(job, registry, "here")) == ["base", "tuned"]


def test_the_adapter_of_the_start_is_compared_once(job):
    """As the champion if it is that, else as `initial`."""
    revision = job.model.facts.revision_hash
    card = SimpleNamespace(base_revision=revision, kind="adapter", config={"run": "earlier"})
    versions = [
        SimpleNamespace(name="wit", aliases=(), path="wit/1", card=card),
        SimpleNamespace(name="wit", aliases=("champion",), path="wit/2", card=card),
    ]
    registry = SimpleNamespace(list=lambda: versions, resolve=lambda reference: versions[int(reference[-1]) - 1])
    base, tuned = {"base": None, "champion": "wit/2"}, {"tuned": "here"}
    found = systems_of(job.with_values({"method.init_adapter": "wit@1"}), registry, "here")
    assert found == base | {"initial": "wit/1"} | tuned and list(found)[-1] == "tuned"
    assert systems_of(job.with_values({"method.init_adapter": "wit@2"}), registry, "here") == base | tuned


def test_a_trial_without_a_finite_metric_is_not_published(job):
    best = Report(step=1, metrics={job.method.metric: math.nan})
    outcome = Outcome(
        trial=Trial(id="t", values={}), reports=(best,), best=best, checkpoint="x", seconds=0.0, ended="diverged"
    )
    message = rf"nothing to publish: no evaluation gave a finite {job.method.metric}; the run ended with diverged"
    for one in (outcome, replace(outcome, best=None), replace(outcome, checkpoint=None)):
        with pytest.raises(InputError, match=message):
            publish(job, prepare(job), one, parent=None, use_gpu=False)
    assert Registry(job.registry_dir).list() == []
