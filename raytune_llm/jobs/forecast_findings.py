"""What a forecast shows that should be changed before anything is spent, each finding with what to change."""

from __future__ import annotations

from collections.abc import Iterator

from raytune_llm.data.findings import many
from raytune_llm.jobs.cost import duration, size
from raytune_llm.sweep.budget import Budget
from raytune_llm.sweep.forecast import Forecast

DAY = 86400.0
COSTLY_EVALUATION = 0.5
"""Of the trials' time, from where evaluations cost more than the training."""
FAIR_EVALUATION = 0.2
"""What they should take at most."""
LONG_COMPARISON = 2.0
"""Times the training."""
LONG_ENOUGH = 60.0
"""Seconds below which nothing is worth a change."""
ANY_STEPS = 1 << 40


def findings(forecast: Forecast, budget: Budget | None) -> Iterator[str]:
    """All of them."""
    yield from of_evaluations(forecast)
    yield from of_memory(forecast)
    yield from of_length(forecast)
    if budget is not None:
        yield from of_budget(forecast, budget)


def of_evaluations(forecast: Forecast) -> Iterator[str]:
    """Evaluations that cost too much, or come too late to decide anything."""
    played, course = forecast.played, forecast.workload.course
    shortest = min(length.steps for length in forecast.workload.lengths)
    longest = max(length.steps for length in forecast.workload.lengths)
    share = played.evaluation_seconds / max(played.busy_seconds, 1e-9)
    if share > COSTLY_EVALUATION:
        fewer = share * (1 - FAIR_EVALUATION) / (FAIR_EVALUATION * max(1 - share, 1e-3))
        every = min(longest, round(course.eval_every * fewer))
        yield (
            f"evaluations cost more than the training, {100 * share:.0f} % of the trials' time: tuning.eval_every="
            f"{every} or fewer records in data.eval bring them to {100 * FAIR_EVALUATION:.0f} %"
        )
    if shortest < course.eval_every:
        yield (
            f"trials of {many(shortest, 'step')} are evaluated once, at their end, as tuning.eval_every="
            f"{course.eval_every} is more: lower it to see them learn and to keep their best step"
        )
    if course.scheduler.rungs(ANY_STEPS) and not course.scheduler.rungs(longest):
        yield (
            f"the scheduler stops no trial: it first decides at step {course.scheduler.rungs(ANY_STEPS)[0]}, and none "
            f"runs longer than {longest}: lower sweep.scheduler.grace_steps, or take sweep/scheduler=none"
        )


def of_memory(forecast: Forecast) -> Iterator[str]:
    """What doesn't fit."""
    layout, memory = forecast.workload.layout, forecast.workload.rehearsal.memory
    if memory is None:
        return
    others = 1 if forecast.workload.device.num_gpus else layout.num_processes
    needed = memory.peak * others
    if needed > memory.free:
        yield (
            f"memory: {many(others, 'base')} with {many(layout.slots, 'trial')} each take {size(needed)}, and "
            f"{size(memory.free)} were free: lower sweep.backend.slots, sweep.max_concurrent, tuning.micro_batch_size "
            "or data.max_tokens"
        )


def of_length(forecast: Forecast) -> Iterator[str]:
    """What takes too long."""
    expected, layout = forecast.expected, forecast.workload.layout
    busy = forecast.played.busy_seconds * forecast.factors.training
    if busy > DAY:
        devices = "one device" if layout.num_processes == 1 else "a single device"
        yield (
            f"{devices} would need {duration(busy)} for these trials: fewer of them (sweep/search=random "
            f"sweep.search.trials=…), shorter ones (tuning.steps), sweep/scheduler=asha, or "
            f"{many(-(-int(busy) // int(DAY)), 'device')} finish in a day"
        )
    if expected.comparing > max(LONG_ENOUGH, LONG_COMPARISON * expected.training):
        yield (
            f"comparing takes longer than training, {duration(expected.comparing)}: evaluation.max_examples or "
            "evaluation.max_new_tokens can be lower"
        )


def of_budget(forecast: Forecast, budget: Budget) -> Iterator[str]:
    """Bounds that the sweep will reach."""
    expected = {
        "hours": forecast.expected.seconds / 3600,
        "gpu_hours": forecast.gpu_hours,
        "usd": forecast.usd,
        "tokens": forecast.tokens,
        "trials": len(forecast.workload.lengths),
    }
    for name, amount in expected.items():
        limit = getattr(budget, name)
        if limit is not None and amount is not None and amount > limit:
            yield f"sweep.budget.{name}={limit:g} ends the sweep before its end, which takes about {amount:.3g}"
