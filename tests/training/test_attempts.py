"""Where and when a trial was trained is kept over its restarts."""

import os
import time

from raytune_llm.training.attempts import device_here, note_attempt, read_attempts


def test_attempts_of_a_resumed_trial_add_up_and_a_new_one_begins_anew(tmp_path):
    folder = str(tmp_path / "t0001")
    assert read_attempts(folder) == []
    before = time.time()
    note_attempt(folder, "GPU 1", from_step=0)
    note_attempt(folder, "GPU 2", from_step=20)
    first, second = read_attempts(folder)
    assert (first.device, second.device, second.from_step) == ("GPU 1", "GPU 2", 20)
    assert before - 1 <= first.started <= second.started and first.process == os.getpid()
    note_attempt(folder, "CPU", from_step=0)
    assert [attempt.device for attempt in read_attempts(folder)] == ["CPU"]


def test_a_process_without_a_gpu_is_on_the_cpu():
    assert device_here(use_gpu=False) == "CPU"
