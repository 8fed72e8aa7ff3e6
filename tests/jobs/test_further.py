"""The harness after a comparison, in a Ray task; what fails there never costs the comparison."""

import pytest
from harness_world import write_tasks

from raytune_llm.errors import InputError
from raytune_llm.evaluation.compare import compare
from raytune_llm.evaluation.metrics import mean
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.config import load
from raytune_llm.jobs.further import check_further, with_further, with_harness

RESULT = ComparisonResult(compare({"tuned": {"eval/loss": mean([1.0] * 4, Better.lower)}}, num_draws=5, seed=0), [])


def job_with(path, *overrides):
    own = ["evaluation.harness.tasks=[own_choice]", f"evaluation.harness.include_path={path}"]
    return load("train", ["model=demo", "data=demo_sarcasm", *own, *overrides])


def test_the_table_of_tasks(tmp_path, ray_session, capsys):
    job = job_with(write_tasks(tmp_path, [("Is it a cat?", ["yes", "no"], 0)] * 3))
    found = with_harness(RESULT, job.model, None, job.evaluation, seed=0, use_gpu=False)
    assert found.tables["Harness"][1][:4] == ["own_choice", "acc", "higher", "3"]
    assert found.details["harness"][0]["task"] == "own_choice" and found.comparison is RESULT.comparison
    assert "  own_choice  acc  higher  3" in capsys.readouterr().out
    (tmp_path / "data.jsonl").unlink()
    found = with_harness(RESULT, job.model, None, job.evaluation, seed=0, use_gpu=False)
    assert found.tables["Harness"][0] == ["failed"] and "own_choice can't be loaded" in found.tables["Harness"][1][0]
    assert "! lm-evaluation-harness failed: evaluation.harness.tasks: own_choice" in capsys.readouterr().out


def test_by_default_nothing_follows(tmp_path):
    job = load("train", ["model=demo", "data=demo_sarcasm"])
    check_further(job.evaluation, job.method)
    where = {"home": str(tmp_path), "run_dir": str(tmp_path), "split": "test"}
    systems = {"base": None, "tuned": "x"}
    assert with_further(RESULT, job.model, systems, job.evaluation, [], **where, seed=0, use_gpu=False) is RESULT


def test_what_cannot_be_run_is_refused_early(tmp_path):
    job = job_with(write_tasks(tmp_path, [("Is it a cat?", ["yes", "no"], 0)]))
    check_further(job.evaluation, job.method)
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(InputError, match="own_choice can't be loaded"):
        check_further(job.evaluation, job.method)
    reward = load(
        "train", ["model=demo", "data=demo_preference", "method=reward", "evaluation.harness.tasks=[arc_easy]"]
    )
    with pytest.raises(InputError, match=r"evaluation\.harness\.tasks=\['arc_easy'\] is not allowed; allowed: \[\]"):
        check_further(reward.evaluation, reward.method)
