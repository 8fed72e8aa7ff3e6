"""Private interfaces of other projects are where compat.py calls them."""

from ray.tune.execution.tune_controller import TuneController

from raytune_llm.compat import resume_trial


def test_ray_tune_gives_schedulers_a_controller_that_can_resume_a_trial():
    """By the wrapper that a scheduler receives; tests/sweep/schedulers/test_batched.py does so in a real sweep."""
    resumed = []

    class Controller(TuneController):
        def __init__(self):
            self._resource_updater = self._search_alg = None  # all that the wrapper looks at

        def _schedule_trial_train(self, trial):
            resumed.append(trial)

    assert callable(TuneController._schedule_trial_train)
    resume_trial(Controller()._wrapped(), "trial")
    assert resumed == ["trial"]
