"""A metric read from its file is the metric that was written."""

import subprocess
import sys

import numpy as np
import pytest

from raytune_llm.evaluation.loss import Score, Scores
from raytune_llm.evaluation.metric_file import read_metric, write_metric
from raytune_llm.evaluation.metrics import mean, task_answers
from raytune_llm.evaluation.terms import Better

SUMS, WEIGHTS = np.array([1.0, 2.5, 0.25]), np.array([2.0, 3.0, 1.0])
ONE = {"nll_loss": Score(SUMS, WEIGHTS, 1.0, Better.lower), "hits": Score(SUMS, WEIGHTS, 0.0, Better.higher)}
TWO = {"label_loss": Score(SUMS, WEIGHTS, 0.7, Better.lower), "other_loss": Score(SUMS**2, WEIGHTS, 0.3, Better.lower)}
METRICS = {
    **Scores(ONE, WEIGHTS).resamplable("one"),
    **Scores(TWO, WEIGHTS).resamplable("two"),
    **task_answers(["yes", "no", "yes"], ["yes", "yes", "maybe"], ["yes", "no"], prefix="labels"),
    **task_answers(["a red cat", "two dogs", "birds"], ["red cat", "dogs", "birds"], None, prefix="texts"),
}


@pytest.mark.parametrize("root", ["{folder}", "memory://metric-file"])
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_trials_can_be_kept(root, name, tmp_path):
    written, folder = METRICS[name], root.format(folder=tmp_path) + "/trials/t0001"
    write_metric(folder, mean([0.0], Better.lower))
    write_metric(folder, written)
    found = read_metric(folder)
    counts = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    assert found is not None and (found.value, found.better) == (written.value, written.better)
    np.testing.assert_array_equal(found.repeated(counts), written.repeated(counts))


def test_a_trial_without_a_report_has_none(tmp_path):
    assert read_metric(str(tmp_path / "t0001")) is None


def test_reading_costs_the_driver_no_torch():
    code = "import sys, raytune_llm.evaluation.metric_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
