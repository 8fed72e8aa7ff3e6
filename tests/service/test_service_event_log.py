"""A job's events: each once, not too many, and the same whatever was stored of them before."""

import math

from controller_world import request

from raytune_llm.service.event_log import MOST, EventLog
from raytune_llm.service.messages import for_owner, last_error, param_of
from raytune_llm.service.records import DataRef, Estimate, State, Status
from raytune_llm.service.run_files import Point, Trial


def trial(id, steps, *, eval_every=1, values=None):
    points = []
    for step in range(1, steps + 1):
        points.append(Point(step=step, time=step, metrics={"train/loss": 2.0}))
        if step % eval_every == 0:
            points.append(Point(step=step, time=step, metrics={"train/loss": 1.5, "eval/loss": 1 + 1 / step}))
    return Trial(id=id, values=values or {}, points=points)


def metrics(log):
    return [event for event in log.events if event.kind == "metrics"]


def test_a_long_sweep_is_thinned_to_a_bound():
    log, trials = EventLog(request(), []), [trial(f"t{i}", 2000, eval_every=2) for i in range(10)]
    assert log.add_points(trials, None)
    evals = [event for event in metrics(log) if event.data["valid_loss"] is not None]
    assert MOST / 2 < len(evals) <= MOST and MOST / 2 < len(metrics(log)) - len(evals) <= MOST
    assert max(event.data["step"] for event in evals) > 1800, "the end is there"
    assert {event.data["trial"] for event in evals} == {f"t{i}" for i in range(10)}
    assert max(event.data["step"] for event in evals[:100]) <= 20, "the beginning is whole"
    assert len({(event.data["trial"], event.data["step"]) for event in evals}) == len(evals)


def test_points_that_come_bit_by_bit_to_ever_new_services_are_never_written_twice():
    asked, events = request(), []
    for steps in range(0, 3000, 100):
        log = EventLog(asked, events)
        log.add_points([trial("t", steps, eval_every=5)], 3000)
        assert not log.add_points([trial("t", steps, eval_every=5)], 3000)
        assert log.events[: len(events)] == events
        events = log.events
    keys = [(event.data["step"], event.data["valid_loss"] is None) for event in metrics(log)]
    assert len(keys) == len(set(keys)) and [int(event.id.rpartition("-")[2]) for event in events] == list(
        range(1, len(events) + 1)
    )


def test_an_evaluation_of_a_step_that_was_written_is_written_too():
    log = EventLog(request(), [])
    points = [Point(step=1, time=1.0, metrics={"train/loss": 2.0})]
    log.add_points([Trial(id="t", values={}, points=points)], None)
    points.append(Point(step=1, time=1.5, metrics={"eval/loss": 3.0}))
    log.add_points([Trial(id="t", values={}, points=points)], None)
    assert [event.message for event in log.events] == [
        "Step 1: training loss=2",
        "Step 1: training loss=2, validation loss=3",
        "New best validation loss 3 at step 1; its checkpoint is kept",
    ]


def test_trials_are_named_where_there_are_several_and_no_number_is_not_finite():
    log = EventLog(request(), [])
    bad = Trial(id="a", values={"tuning.steps": 7}, points=[Point(step=1, time=1, metrics={"train/loss": math.nan})])
    log.add_points([bad, trial("b", 1)], 9)
    assert [event.message for event in log.events] == [
        "Step 1/7: no finite loss (trial a)",
        "Step 1/9: training loss=1.5, validation loss=2 (trial b)",
        "New best validation loss 2 at step 1 (trial b); its checkpoint is kept",
    ]
    assert log.events[0].data["train_loss"] is None


def test_notes_of_the_plan_are_events():
    estimate = Estimate(records=1, epochs=1, tokens=5, trials=1, device_hours=0.001)
    changes = (("validating_files", 1.0), ("queued", 2.5))
    log = EventLog(request(), [])
    assert log.add_changes(Status(state=State.queued, changes=changes, estimate=estimate, plan_notes=("cut short",)))
    assert [(event.created, event.message) for event in log.events][-2:] == [
        (2, "Estimated: 1 record × 1 epoch, 5 training tokens, about 0.001 device hours"),
        (2, "cut short"),
    ]


def test_the_last_error_of_an_output():
    output = "\x1b[31merror: first\x1b[0m\n(pid=12) error: last, in\n  two lines\nverdict: no\nbye\n  more"
    assert last_error(output) == "last, in\n  two lines\nverdict: no"
    assert last_error("(train pid=3, ip=1.2.3.4) error: x") == "x" and last_error("no error: here") is None


def test_messages_name_files_as_the_client_does_and_no_path():
    asked = request(validation=DataRef(name="file-v", location="s3://bucket/home/service/files/file-v/content.jsonl"))
    message = f"{asked.training.location}:3 and {asked.validation.location}:4, data.eval, /root/x/y.json, gs://b/c/d"
    assert for_owner(message, asked) == "file-aaa:3 and file-v:4, validation_file, y.json, d"
    assert for_owner("x" * 5000, asked) == "x" * 1998 + " …"
    assert param_of("file-aaa:3 is like file-v:1", asked) == "training_file"
    assert param_of("validation_file: too few", asked) == "validation_file" and param_of("no", asked) == "training_file"
