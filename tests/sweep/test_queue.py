"""Our trials as Ray Tune's."""

from pathlib import Path

from ray import tune
from ray.tune.experiment import Experiment, Trial

from raytune_llm.sweep.queue import ended_trial, trial_of
from raytune_llm.sweep.trial_store import Origin, TrialRecord


def test_a_trial_has_our_id_and_a_folder_before_it_starts(ray_session, tmp_path):
    def trainable(config):
        """Runs nothing."""

    tune.register_trainable("nothing", trainable)
    name = {"trial_dirname_creator": lambda trial: str(trial.trial_id)}
    experiment = Experiment("tune", "nothing", num_samples=-1, storage_path=str(tmp_path), max_failures=2, **name)
    trial = trial_of(experiment.spec, TrialRecord(id="t0003", values={"seed": 4}, origin=Origin.search))
    assert trial.trial_id == "t0003" and trial.config == {"seed": 4} and trial.max_failures == 2
    assert trial.status == Trial.PENDING and Path(trial.path) == tmp_path / "tune" / "t0003"


def test_an_ended_trial():
    trial = ended_trial("t0001")
    assert trial.trial_id == "t0001" and trial.status == Trial.TERMINATED
