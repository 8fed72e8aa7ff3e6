"""A sweep whose configurations are all alike says that its winner is luck."""

import json

import pytest

from raytune_llm.jobs.config import load
from raytune_llm.jobs.run_result import RESULT
from raytune_llm.jobs.sweep import run_sweep


@pytest.mark.slow  # a whole sweep, 6 trials and 6 more with fresh seeds
@pytest.mark.usefixtures("ray_session")
def test_trials_that_differ_in_their_seeds_alone_are_no_better_than_each_other(tmp_path):
    space = ["sweep.space.tuning=null", "sweep.space.seed=[1,2,3,4,5,6]", "tuning.steps=60", "tuning.eval_every=20"]
    given = ["model=demo", "data=demo_sarcasm", f"home={tmp_path}", "name=alike", "run=r", "evaluation.drift=false"]
    run_sweep(load("sweep", [*given, *space, "tuning.learning_rate_multiplier=2", "tuning.adapter_size=4"]))
    found = json.loads((tmp_path / "runs/alike/r" / RESULT).read_text())["confirmation"]
    assert not found["is_clear"] and found["configurations"][0]["first"] < 0.975
    assert found["verdict"].startswith(("no significant difference", "luck isn't excluded"))
    assert len(found["configurations"]) == 3 and found["num_records"] == 256
