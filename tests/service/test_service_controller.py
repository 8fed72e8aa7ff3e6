"""Jobs from their creation to their end, on a cluster that the test moves."""

import errno
import os

import pytest
from controller_world import Check, Work, World, controller, open_store, request, run_to_end, service

from raytune_llm.service.check_process import CheckProcess, Finished
from raytune_llm.service.records import DataRef, State, Wanted
from raytune_llm.service.runner import RunState
from raytune_llm.serving.api.errors import ApiError


@pytest.fixture
def world():
    return World()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return open_store(tmp_path / "home")


def messages(found, job):
    return [event.message for event in found.events(job.request.id, job.request.owner) if event.kind == "message"]


def state_of(found, job):
    return found.job(job.request.id, job.request.owner).status.state


def start_running(found, **fields):
    """A job that runs."""
    job = found.create(request(**fields))
    found.step()
    found.step()
    assert state_of(found, job) is State.running
    return job


def test_a_job_from_its_creation_to_its_model(world, store):
    found = controller(world, store)
    job = found.create(request())
    assert job.status.state is State.validating_files and job.place is None
    run_to_end(world, found)
    ended = found.job(job.request.id, "local").status
    assert [name for name, _ in ended.changes] == ["validating_files", "queued", "running", "succeeded"]
    assert ended.command == ("raytune-llm", "sweep", f"run={job.request.id}", "has_gpu=False")
    assert world.commands == {f"{job.request.id}-1": ended.command}
    assert ended.result.version == "tuned@1" and ended.result.is_named and ended.result.trained_tokens == 400
    assert messages(found, job) == [
        f"Created fine-tuning job: {job.request.id}",
        "Validating training file: file-aaa",
        "Files validated, moving job to queued state",
        "Estimated: 10 records × 3 epochs, 2 trials, 300 training tokens, about 0.5 device hours",
        "Fine-tuning job started",
        "New best validation loss 2 at step 1; its checkpoint is kept",
        "New best validation loss 1.5 at step 2; its checkpoint is kept",
        "New best validation loss 1.333 at step 3; its checkpoint is kept",
        "New best validation loss 1.25 at step 4; its checkpoint is kept",
        "better than base",
        "New fine-tuned model created: tuned@1",
        "The job has successfully completed",
    ]
    events = found.events(job.request.id, "local")
    assert [int(event.id.rpartition("-")[2]) for event in events] == list(range(1, len(events) + 1))
    first = next(event for event in events if event.kind == "metrics")
    assert first.message == "Step 1/4: training loss=2, validation loss=2" and first.data == {
        "step": 1,
        "train_loss": 2.0,
        "valid_loss": 2.0,
        "train_mean_token_accuracy": None,
        "valid_mean_token_accuracy": 0.5,
        "total_steps": 4,
        "trial": "t1",
    }


def test_its_result_files(world, store):
    found = controller(world, store)
    job = found.create(request("0123456789abcdef"))
    run_to_end(world, found)
    ids = found.job(job.request.id, job.request.owner).status.result_files
    metrics, leaderboard = map(store.file, ids)
    assert {metrics.owner, leaderboard.owner} == {job.request.owner}
    assert (metrics.filename, metrics.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert store.content(metrics).decode().splitlines()[:2] == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,2.0,,2.0,0.5",
    ]
    assert leaderboard.filename == "leaderboard.csv" and store.content(leaderboard) == b"rank\n1\n"


@pytest.mark.parametrize(
    ("n_epochs", "promoted", "is_named"), [("auto", False, False), (3, False, True), (3, True, True)]
)
def test_a_version_is_named_if_it_won_or_nothing_was_left_to_find(world, store, n_epochs, promoted, is_named):
    found, asked = controller(world, store), request(hyperparameters={"n_epochs": n_epochs})
    world.work[asked.id] = Work(promoted=promoted)
    job = found.create(asked)
    run_to_end(world, found)
    ended = found.job(job.request.id, "local").status
    assert ended.state is State.succeeded and ended.result.is_named == is_named
    assert any(line.startswith("No model is named: tuned@1 is not better") for line in messages(found, job)) != is_named


def test_bad_files_fail_with_the_clients_names_and_the_line(world, store):
    found = controller(world, store)
    at = "/data/home/service/files/file-bbb/content.jsonl"
    asked = request(validation=DataRef(name="file-bbb", location=at))
    world.bad_files[asked.id] = Finished(
        2, f"reading\nerror: 1 problem in the data:\n  {at}:2: /etc/x not JSON\nhint /a/b"
    )
    job = found.create(asked)
    run_to_end(world, found)
    ended = found.job(job.request.id, "local").status
    assert (ended.state, ended.error.code, ended.error.param) == (
        State.failed,
        "invalid_training_file",
        "validation_file",
    )
    assert ended.error.message == "1 problem in the data:\n  file-bbb:2: x not JSON"
    assert messages(found, job)[-1] == f"The job failed: {ended.error.message}" and not world.submitted


def test_a_check_that_breaks_is_no_fault_of_the_client(world, store, tmp_path):
    found, asked = controller(world, store), request()
    world.bad_files[asked.id] = Finished(-9, "half a line")
    found.create(asked)
    run_to_end(world, found)
    ended = found.job(asked.id, "local").status
    assert (ended.state, ended.error.code) == (State.failed, "server_error")
    assert (tmp_path / "home/service/jobs" / asked.id / "logs/check.txt").read_text() == "half a line"


def test_checks_run_as_a_process_that_can_be_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEYS", "x")
    process = CheckProcess(("raytune-llm", "unknown"), hidden=("SECRET_KEYS",))
    while (finished := process.poll()) is None:
        process._process.wait()
    assert finished.exit_status == 2 and finished.output.startswith("error: unknown command: unknown")
    process.kill()
    folder = process._folder.name
    assert not os.path.exists(folder)
    process = CheckProcess(("raytune-llm", "--version"))
    process.kill()
    assert process._process.returncode is not None


def test_a_failed_run_says_its_own_last_error(world, store):
    found, asked = controller(world, store), request()
    world.work[asked.id] = Work(fails=f"error: {asked.training.location}: too long for /opt/base/model")
    job = found.create(asked)
    run_to_end(world, found)
    ended = found.job(asked.id, "local").status
    assert (ended.state, ended.error.code) == (State.failed, "training_failed")
    assert ended.error.message == "file-aaa: too long for model"
    assert messages(found, job)[-1].startswith("The job failed: file-aaa") and world.submitted == [f"{asked.id}-1"]


def test_a_run_that_the_cluster_loses_is_made_again_a_few_times(world, store):
    found = controller(world, store)
    job = start_running(found)
    for attempt in range(1, 5):
        lost = world.attempts[f"{job.request.id}-{attempt}"]
        lost.state, lost.message = RunState.failed, "the job supervisor actor died"
        found.step()
    ended = found.job(job.request.id, "local").status
    assert ended.state is State.failed and ended.lost == 3 and len(world.submitted) == 4
    assert sum("continue from its last checkpoint" in line for line in messages(found, job)) == 3


def test_a_run_that_the_cluster_forgot_is_submitted_again_unless_it_has_ended(world, store):
    found = controller(world, store)
    job = start_running(found)
    world.lose()
    found.step()
    assert world.submitted == [f"{job.request.id}-1"] * 2 and state_of(found, job) is State.running
    world.pass_time(100)
    world.lose()
    found.step()
    assert len(world.submitted) == 2 and state_of(found, job) is State.succeeded


def test_a_run_without_a_result_fails_after_a_while(world, store):
    found = controller(world, store)
    job = start_running(found)
    world.pass_time(20)
    world.outcomes.clear()
    found.step()
    assert state_of(found, job) is State.running
    world.pass_time(31)
    found.step()
    ended = found.job(job.request.id, "local").status
    assert ended.state is State.failed and ended.error.message.startswith("the run ended without a result")


def test_a_run_stopped_on_the_cluster_is_cancelled(world, store):
    found = controller(world, store)
    job = start_running(found)
    world.stop(world.submitted[0])
    world.pass_time(1)
    found.step()
    assert state_of(found, job) is State.cancelled
    assert messages(found, job)[-1] == "Fine-tuning job cancelled: its Ray job was stopped on the cluster"


# what owners do to their jobs, in every state


def in_state(found, world, state):
    """A job in that state."""
    other = start_running(found) if state is State.queued else None
    asked = request()
    job = found.create(asked)
    if state is State.failed:
        world.bad_files[asked.id] = Finished(2, "error: no")
    if state in (State.failed, State.queued):
        found.step()
        found.step()
    elif state in (State.running, State.paused, State.succeeded, State.cancelled):
        found.step()
        found.step()
        if state is State.paused:
            found.pause(asked.id, "local")
        if state is State.cancelled:
            found.cancel(asked.id, "local")
        if state is State.succeeded:
            run_to_end(world, found)
    assert state_of(found, job) is state
    return job, other


@pytest.mark.parametrize("state", State)
def test_cancelling_in_every_state(world, store, state):
    found = controller(world, store)
    job, other = in_state(found, world, state)
    if state.is_final:
        with pytest.raises(ApiError, match=f"is {state.value} and can't be cancelled") as refused:
            found.cancel(job.request.id, "local")
        assert refused.value.status == 400
        return
    assert found.cancel(job.request.id, "local").status.state is State.cancelled
    run_to_end(world, found)
    ended = found.job(job.request.id, "local").status
    assert ended.state is State.cancelled and not ended.is_submitted and not world.running
    assert messages(found, job).count("Fine-tuning job cancelled") == 1
    assert other is None or state_of(found, other) is State.succeeded


@pytest.mark.parametrize("state", State)
def test_pausing_and_resuming_in_every_state(world, store, state):
    found = controller(world, store)
    job, _ = in_state(found, world, state)
    id = job.request.id
    if state.is_final or state is State.paused:
        with pytest.raises(ApiError, match=f"is {state.value} and can't be paused"):
            found.pause(id, "local")
    else:
        assert found.pause(id, "local").status.state is State.paused
    if state.is_final:
        with pytest.raises(ApiError, match=f"is {state.value} and can't be resumed"):
            found.resume(id, "local")
        return
    run_to_end(world, found)
    assert state_of(found, job) is State.paused and not world.running
    resumed = found.resume(id, "local").status
    assert resumed.state is (State.validating_files if state is State.validating_files else State.queued)
    with pytest.raises(ApiError, match="can't be resumed"):
        found.resume(id, "local")
    run_to_end(world, found)
    ended = found.job(id, "local").status
    assert ended.state is State.succeeded and ended.attempt == (2 if state in (State.running, State.paused) else 1)
    assert world.done[id] == 20, "a resumed run continues"


def test_a_job_resumed_while_its_attempt_still_ends_is_queued_for_its_owner(world, store):
    found = controller(world, store)
    job = start_running(found)
    id = job.request.id
    found.pause(id, "local")
    found.step()
    assert world.stops == 1
    resumed = found.resume(id, "local")
    assert resumed.status.state is State.queued and resumed.place == 1
    found = controller(world, store)  # another service knows it, too
    found.step()
    assert found.job(id, "local").status.state is State.queued and len(world.submitted) == 1
    assert found.pause(id, "local").status.state is State.paused
    assert found.resume(id, "local").status.wanted is Wanted.run
    run_to_end(world, found)
    assert world.submitted == [f"{id}-1", f"{id}-2"] and state_of(found, job) is State.succeeded


def test_a_run_that_ended_before_its_pause_has_succeeded(world, store):
    found = controller(world, store)
    job = start_running(found)
    world.pass_time(20)
    found.pause(job.request.id, "local")
    found.step()
    assert state_of(found, job) is State.succeeded


def test_cancelling_ends_a_check(world, store):
    check = Check(None)
    found = controller(world, store, check=lambda command: check)
    job = found.create(request())
    found.step()
    found.cancel(job.request.id, "local")
    found.step()
    assert check.killed and state_of(found, job) is State.cancelled


def test_a_check_that_takes_too_long_is_ended(world, store):
    """The jobs behind it don't wait for ever."""
    check = Check(None)
    found = controller(world, store, check=lambda command: check)
    job = found.create(request())
    found.step()
    world.clock.now += 59
    found.step()
    assert state_of(found, job) is State.validating_files
    world.clock.now += 2
    found.step()
    error = found.job(job.request.id, "local").status.error
    assert check.killed and state_of(found, job) is State.failed and "more than 60 seconds" in error.message


def test_a_job_whose_cluster_is_lost_again_and_again_ends(world, store):
    """It may be the job that ends it."""
    found = controller(world, store)
    job = start_running(found)
    for _ in range(3):
        world.lose()
        found.step()
        assert state_of(found, job) is State.running and len(world.attempts) == 1
    world.lose()
    found.step()
    assert state_of(found, job) is State.failed and not world.attempts


# limits


def test_more_unfinished_jobs_than_allowed_are_refused(world, store):
    found = controller(world, store, service(max_queued_per_key=2))
    jobs = [found.create(request()) for _ in range(2)]
    with pytest.raises(ApiError, match="2 unfinished jobs") as refused:
        found.create(request())
    assert refused.value.status == 429 and found.create(request("other"))
    found.cancel(jobs[0].request.id, "local")
    assert found.create(request())


def test_places_in_the_queue(world, store):
    found = controller(world, store)
    start_running(found)
    jobs = [found.create(request(owner, created=1_700_000_001 + i)) for i, owner in enumerate(("local", "a", "a", "b"))]
    for _ in range(len(jobs) + 1):
        found.step()
    assert [found.job(job.request.id, job.request.owner).place for job in jobs] == [3, 1, 4, 2]
    assert [job.request.id for job in found.jobs("a")] == [jobs[2].request.id, jobs[1].request.id]


def test_twenty_jobs_of_three_keys_run_two_at_once_and_take_turns(world, store):
    found = controller(world, store, service(max_jobs=2))
    owners = ["a"] * 12 + ["b"] * 4 + ["c"] * 4
    jobs = {}
    for i, owner in enumerate(owners):
        asked = request(owner, created=1_700_000_000 + i)
        world.work[asked.id] = Work(seconds=5 + i * 7 % 30)
        jobs[asked.id] = owner
        found.create(asked)
    for _ in owners:
        found._validation.step()  # all are checked before the first starts
        found._validation.step()
    run_to_end(world, found)
    assert len(world.submitted) == len(set(world.submitted)) == 20 and world.most_at_once == 2
    first = [jobs[id.rpartition("-")[0]] for id in world.submitted[:12]]
    assert min(map(first.count, "abc")) >= 3, first
    assert all(found.job(id, owner).status.state is State.succeeded for id, owner in jobs.items())


def test_device_hours_are_counted_and_used_up(world, store):
    world.gpus = 8
    found = controller(world, store, service(max_jobs=2, device_hours_per_key=1.0))
    for owner in ("a", "b"):
        asked = request(owner)
        world.work[asked.id] = Work(seconds=10_000)
        found.create(asked)
    for _ in range(3):
        found.step()
    assert len(world.running) == 2
    for _ in range(10):
        world.pass_time(30)
        found.step()
    assert found.device_hours("a") == found.device_hours("b") == pytest.approx(300 * 8 / 2 / 3600)
    (mine,) = found.jobs("a")
    found.cancel(found.jobs("b")[0].request.id, "b")
    world.pass_time(1)
    found.step()
    world.pass_time(1)
    found.step()
    late, last = request("a", created=1_700_000_001), request("a", created=1_700_000_002)
    world.work[late.id] = Work(seconds=10_000)
    for one in (late, last):
        found.create(one)
    for _ in range(3):
        found.step()
    world.pass_time(400)
    found.step()
    assert found.device_hours("a") > 1
    note = "the 1 device hours of this key are used up"
    mine, late, last = (found.job(id, "a").status for id in (mine.request.id, late.id, last.id))
    assert [one.state for one in (mine, late, last)] == [State.paused, State.paused, State.queued]
    assert mine.note == late.note == last.note == note
    with pytest.raises(ApiError, match=note) as refused:
        found.create(request("a"))
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    with pytest.raises(ApiError, match=note):
        found.resume(found.jobs("a")[-1].request.id, "a")


def test_device_time_while_no_service_ran_is_counted_to_the_end_of_the_run(world, store):
    found = controller(world, store)
    job = start_running(found)
    world.pass_time(20)
    world.pass_time(5000)
    found = controller(world, store)
    found.step()
    ended = found.job(job.request.id, "local").status
    assert ended.state is State.succeeded and ended.device_seconds == 20 and ended.counted is None


# troubles


def test_jobs_of_another_owner_are_not_there(world, store):
    found = controller(world, store)
    job = found.create(request("mine"))
    for action in (found.job, found.cancel, found.pause, found.resume, found.events):
        assert action(job.request.id, "yours") is None and action("ftjob-0", "mine") is None
    assert found.jobs("yours") == []


def test_an_unreachable_cluster_is_waited_for(world, store, capsys):
    found = controller(world, store)
    job = found.create(request())
    world.unreachable = True
    for _ in range(3):
        found.step()
    assert state_of(found, job) is State.validating_files
    world.unreachable = False
    found.step()
    world.unreachable = True
    for _ in range(3):
        found.step()
    assert capsys.readouterr().out.count("! the cluster can't be reached; trying again") == 2
    world.unreachable = False
    run_to_end(world, found)
    assert state_of(found, job) is State.succeeded and world.submitted == [f"{job.request.id}-1"]
    assert "the service's jobs move again" in capsys.readouterr().out


def test_a_full_disk_is_waited_for(world, store, monkeypatch, capsys):
    found = controller(world, store)
    job = start_running(found)
    world.pass_time(20)
    with monkeypatch.context() as patch:

        def full(path, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(store._storage, "write", full)
        for _ in range(3):
            found.step()
        assert state_of(found, job) is State.running
        with pytest.raises(OSError, match="No space left"):
            found.create(request())
    assert capsys.readouterr().out.count("No space left on device") == 1
    run_to_end(world, found)
    assert state_of(found, job) is State.succeeded and len(messages(found, job)) == len(set(messages(found, job)))
    assert len(found.jobs("local")) == 1


def test_a_result_that_nobody_foresaw_fails_its_job_alone(world, store):
    found = controller(world, store)
    job = start_running(found)
    other = found.create(request(created=1_700_000_001))
    world.pass_time(20)
    world.outcomes[job.request.id] = {"version": 3}
    run_to_end(world, found)
    assert state_of(found, job) is State.failed and state_of(found, other) is State.succeeded


def test_metrics_that_nobody_foresaw_hold_up_no_other_job(world, store, capsys):
    found = controller(world, store, service(max_jobs=2))
    job = start_running(found)
    other = found.create(request(created=1_700_000_001))
    world.work[job.request.id] = Work(seconds="unknown")
    world.pass_time = lambda seconds, of=world.pass_time: None
    for _ in range(4):
        found.step()
    assert state_of(found, other) is State.running and state_of(found, job) is State.running
    assert capsys.readouterr().out.count("TypeError") == 1


def test_its_thread_moves_jobs_until_it_is_closed(world, store):
    found = controller(world, store)
    job = found.create(request())
    found.start()
    while state_of(found, job) is not State.running:
        pass
    found.close()
    assert not found._thread.is_alive() and world.running
