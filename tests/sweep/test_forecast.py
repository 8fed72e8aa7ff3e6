"""A sweep played in advance: closed forms of its time, what schedulers stop, and what earlier trainings teach."""

import dataclasses
from dataclasses import asdict, replace

import pytest

from raytune_llm.stores.card import Card
from raytune_llm.sweep.experience import Kind, factors_of
from raytune_llm.sweep.forecast import (
    UNCHANGED,
    Amounts,
    Compared,
    Data,
    Device,
    Workload,
    amounts_of,
    comparing_seconds,
    make_forecast,
)
from raytune_llm.sweep.schedulers.asha import ASHA
from raytune_llm.sweep.schedulers.hyperband import HyperBand
from raytune_llm.sweep.schedulers.median import Median
from raytune_llm.sweep.schedulers.none import NoStopping
from raytune_llm.sweep.simulation import Course, Layout, Length, Simulation
from raytune_llm.training.rehearsal import Answered, Memory, Rehearsal, between, together

MEASURED = Rehearsal(
    source="measured",
    device="CPU",
    start_seconds=5.0,
    load_seconds=1.0,
    steps={1: 1.0, 2: 1.5, 4: 3.0},
    evaluations={1: 4.0, 4: 10.0},
    checkpoint_seconds=0.0,
    answering=None,
    comparing=Answered(read_seconds=0.1, token_seconds=0.01, num_tokens=60.0),
    capacity=4,
    memory=Memory(base=100, slots=40, others=10, peak=200, free=1000),
    spent_seconds=2.0,
)
ONE_BY_ONE = Layout(
    num_processes=1, slots=1, max_concurrent=None, first_seconds=5.0, next_seconds=0.5, report_seconds=0.25
)
NO_STOPS = Course(eval_every=10, milestones=(20,), scheduler=NoStopping(), patience=None)
ASHA_3 = ASHA(grace_steps=10, reduction_factor=3)


def play(lengths, course=NO_STOPS, layout=ONE_BY_ONE, seed=0):
    return Simulation(lengths, course, layout, MEASURED, seed=seed).play()


def trials(count, steps=20):
    return [Length(steps=steps, size=1.0)] * count


def workload(**changes):
    values = {
        "lengths": tuple(trials(4)),
        "course": NO_STOPS,
        "layout": ONE_BY_ONE,
        "rehearsal": MEASURED,
        "data": Data(num_train=100, num_eval=50, tokens_per_example=30.0, answered=0, answer_tokens=2.0),
        "compared": Compared(num_systems=2, prompts=(50,), examples=(50,), answer_tokens=2.0),
        "confirmed": None,
        "device": Device(num_gpus=2.0, num_nodes=1, usd_per_hour=3.6),
        "batch_size": 8,
        "num_parameters": 1000,
        "num_trained": 10,
        "start_seconds": 7.0,
        "fixed_seconds": 3.0,
        "seed": 0,
    }
    return Workload(**values | changes)


def test_one_trial_after_another_takes_the_sum_of_its_parts():
    played = play(trials(3))
    assert (played.trial_steps, played.evaluations) == (60, 6)
    each = 20 * 1.0 + 2 * (4.0 + 0.25)
    assert played.seconds == pytest.approx(5.0 + 3 * each + 2 * 0.5)


def test_trials_of_a_pack_step_and_are_evaluated_together():
    played = play(trials(4), layout=replace(ONE_BY_ONE, slots=4))
    assert played.seconds == pytest.approx(5.0 + 20 * 3.0 + 2 * (10.0 + 4 * 0.25))


def test_trials_spread_evenly_over_processes_and_at_most_so_many_run():
    layout = replace(ONE_BY_ONE, num_processes=2, slots=4)
    each = 20 * 1.5 + 2 * (between({1: 4, 4: 10}, 2) + 0.5)
    assert play(trials(4), layout=layout).seconds == pytest.approx(5.0 + each)
    bounded = play(trials(4), layout=replace(layout, max_concurrent=1))
    assert bounded.trial_steps == 80
    assert bounded.seconds == pytest.approx(play(trials(4)).seconds, abs=1.6)


def test_smaller_batches_cost_less_and_longer_trials_more():
    half = play([Length(steps=20, size=0.5)])
    assert half.sized_steps == pytest.approx(10.0)
    assert half.seconds == pytest.approx(5.0 + 20 * 0.5 + 2 * 4.25)
    assert play(trials(1, steps=40)).seconds > play(trials(1)).seconds


@pytest.mark.parametrize(
    ("scheduler", "most"),
    [
        (NoStopping(), 1.0),
        (ASHA_3, 0.75),
        (Median(grace_steps=10, min_trials=3), 0.85),
        (HyperBand(reduction_factor=3), 0.75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedulers_stop_about_what_they_promise(scheduler, most):
    course = Course(eval_every=10, milestones=(), scheduler=scheduler, patience=None)
    shares = [play(trials(30, steps=90), course, seed=seed).trial_steps / (30 * 90) for seed in range(5)]
    assert max(shares) <= most
    assert min(shares) > 10 / 90


def test_asha_passes_just_the_best_third_of_those_judged_together():
    course = Course(eval_every=10, milestones=(), scheduler=ASHA_3, patience=None)
    played = play(trials(9, steps=20), course, layout=replace(ONE_BY_ONE, slots=9))
    assert played.trial_steps == 9 * 10 + 3 * 10


def test_patience_ends_trials_after_their_best_step():
    patient = replace(NO_STOPS, patience=1, eval_every=5, milestones=())
    assert play(trials(20, steps=100), patient).trial_steps < play(trials(20, steps=100)).trial_steps
    assert play(trials(3, steps=5), patient).trial_steps == 15


def test_a_forecast_has_time_by_phase_tokens_gpu_hours_cost_and_disk():
    forecast = make_forecast(workload())
    expected = forecast.expected
    assert expected.start == 7.0
    assert expected.training == pytest.approx(3.0 + play(trials(4)).seconds)
    assert expected.trial_steps == 80
    assert forecast.most_seconds == pytest.approx(expected.seconds)
    assert forecast.tokens == 80 * 8 * 30.0
    assert forecast.gpu_hours == pytest.approx((2 * expected.training + expected.comparing) / 3600)
    assert forecast.usd == pytest.approx(3.6 * 2 * expected.seconds / 3600)
    assert forecast.reserve_seconds == expected.comparing
    assert forecast.disk_bytes == 4 * 10 * (4 * 4 + 1)


def test_comparing_reads_every_prompt_once_a_system_and_only_the_base_writes_to_its_own_end():
    answered = comparing_seconds(workload())
    assert answered == pytest.approx(5.0 + 1.0 + 1.0 + 1.0 + 100 * 0.1 + 50 * (60 + 2) * 0.01)
    scored = comparing_seconds(workload(rehearsal=replace(MEASURED, comparing=None)))
    assert scored == pytest.approx(5.0 + 1.0 + 1.0 + 1.0 + 2 * 4.0)


def test_trials_that_are_chosen_by_their_answers_take_longer():
    answering = replace(MEASURED, answering=MEASURED.comparing)
    data = replace(workload().data, answered=10, answer_tokens=2.0)
    slower = make_forecast(workload(rehearsal=answering, data=data))
    assert slower.played.seconds == pytest.approx(make_forecast(workload()).played.seconds + 8 * (1.0 + 0.2))


def card(forecast, **changes):
    values = {
        "kind": "adapter",
        "base": "b",
        "base_revision": "r",
        "base_loading": {},
        "method": "sft",
        "metrics": {},
        "intervals": {},
        "config": {},
        "data": {},
        "seed": 0,
        "step": 1,
        "probes": [],
        "code_version": "1",
        "forecast": forecast,
    }
    return Card(**values | changes)


def test_earlier_trainings_of_the_same_kind_correct_a_forecast_by_their_median():
    forecast = make_forecast(workload())
    twice = replace(forecast.raw, training=2 * forecast.raw.training, trial_steps=forecast.raw.trial_steps / 2)
    kept = forecast.record(twice)
    kind = Kind("r", "sft", True, MEASURED)
    others = [card({}), card(kept, method="dpo"), card(kept, base_revision="s"), card(kept | {"device": "H100"})]
    accident = card(kept | {"actual": asdict(replace(twice, training=1000 * twice.training))})
    factors, count = factors_of(kind, [*others, card(kept), card(kept), accident])
    assert count == 3
    assert factors == replace(UNCHANGED, training=2.0, trial_steps=0.5)
    corrected = make_forecast(workload(), factors, count)
    assert corrected.expected.training == pytest.approx(twice.training)
    assert corrected.raw == forecast.raw
    assert corrected.record(twice)["raw"] == kept["raw"]
    assert corrected.tokens == forecast.tokens / 2


def test_without_earlier_trainings_nothing_is_corrected():
    assert factors_of(Kind("r", "sft", True, MEASURED), [card({})]) == (UNCHANGED, 0)


def test_predicted_against_actual_in_a_line():
    forecast = make_forecast(workload())
    actual = amounts_of(
        {"start": 5.0, "earlier stages": 2.0, "training": 130.0, "comparing and publishing": 21.0},
        trial_steps=70,
        memory_bytes=1,
    )
    assert actual == Amounts(start=7.0, training=130.0, comparing=21.0, trial_steps=70, memory_bytes=1)
    line = forecast.against(actual)
    assert line.startswith("158 s, predicted ")
    assert line.endswith("steps 70 (80)")
    assert make_forecast(workload()).against(forecast.expected).count("(+0 %)") == 1


def test_between_follows_the_line_and_grows_in_proportion_beyond_it():
    assert [between({2: 4.0, 4: 6.0}, count) for count in (1, 2, 3, 4, 8)] == [2.0, 4.0, 5.0, 6.0, 12.0]


def test_rehearsals_made_together_are_one():
    other = replace(MEASURED, steps={1: 3.0, 2: 2.5, 4: 5.0}, memory=replace(MEASURED.memory, peak=300), comparing=None)
    found = together([MEASURED, other])
    assert found.steps == {1: 2.0, 2: 2.0, 4: 4.0}
    assert found.memory.peak == 300
    assert found.comparing == MEASURED.comparing
    assert {field.name for field in dataclasses.fields(found)} == {field.name for field in dataclasses.fields(MEASURED)}
