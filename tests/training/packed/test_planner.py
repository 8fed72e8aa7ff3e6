"""The planner on real packs with a clock whose costs are known."""

import itertools
import re

import pytest
import torch
from packed_oracle import BUDGET, distance, make_examples, make_model, make_pack, make_spec, sft_terms, table_of

from raytune_llm.training.packed import planner as planner_module
from raytune_llm.training.packed.pack import Pack
from raytune_llm.training.packed.planner import Planner

NUM_SLOTS = 8


class CostlyPasses:
    """A clock that moves by `seconds` of what a pack has done since it was last read."""

    def __init__(self, pack: Pack, seconds) -> None:
        self.pack, self.seconds, self.now, self.odd = pack, seconds, 0.0, False

    def __call__(self) -> float:
        if self.odd:
            self.now += self.seconds(self.pack)
        self.odd = not self.odd
        return self.now


def plan(seconds, steps=14, slots=NUM_SLOTS):
    pack = make_pack(make_model(), capacity=slots, max_lora_rank=4)
    table = table_of(make_examples(20), pack.model)
    for i in range(slots):
        pack.join(make_spec(f"t{i}", seed=i, batch_size=1), table, sft_terms)
    logged: list[str] = []
    planner = Planner(pack, max_tokens=1000, log=logged.append, clock=CostlyPasses(pack, seconds))
    passes = []
    for _ in range(steps):
        planner.step()
        passes.append(pack.budget.slots_per_pass)
    return pack, passes, logged


def test_costly_passes_are_shared_by_all():
    pack, passes, logged = plan(lambda pack: pack.num_passes * 1.0 + pack.padded_tokens * 1e-3)
    assert set(passes) == {8}  # two passes of four would take twice as long: that is known without a measurement
    assert len(logged) == 1
    line = (
        r"packing: 8 trials per pass, about \d+\.\d× faster than one at a time; max tokens per pass 1000; "
        r"pass overhead ≈ 1000 tokens"
    )
    assert re.fullmatch(line, logged[0])
    assert pack.budget.overhead_tokens == 1000  # a pass costs as much as 1000 of its tokens


def test_halves_that_slow_down_are_not_tried_further():
    _, passes, _ = plan(lambda pack: pack.num_passes * 0.1 + pack.padded_tokens * 1e-2, steps=9, slots=16)
    assert passes == [16, 16, 16, 8, 8, 16, 16, 16, 16]


def test_saturated_passes_run_one_after_another():
    _, passes, logged = plan(lambda pack: pack.num_passes * 1e-4 + pack.padded_tokens * 1e-3)
    assert passes[:9] == [8, 8, 8, 4, 4, 2, 2, 1, 1] and set(passes[9:]) == {1}
    assert logged[0].startswith("packing: one trial per pass;")


def test_a_full_cache_stops_the_climb():
    def seconds(pack):
        return pack.num_passes + pack.padded_tokens * 1e-3 * (1 if pack.budget.slots_per_pass <= 2 else 5000)

    _, passes, _ = plan(seconds)
    assert passes[:7] == [8, 8, 8, 4, 4, 2, 2] and set(passes[7:]) == {2}


def test_one_trial_is_planned_without_timing_and_more_are_timed_when_they_come():
    pack = make_pack(make_model(), capacity=NUM_SLOTS, max_lora_rank=4)
    table = table_of(make_examples(20), pack.model)
    logged: list[str] = []
    planner = Planner(
        pack,
        max_tokens=1000,
        log=logged.append,
        clock=CostlyPasses(pack, lambda pack: pack.num_passes / len(pack.trial_ids)),
    )
    passes = []
    for count in (1, 1, 2, 2, 2, 2, 2, 8, 8, 8, 8, 8):
        for i in range(len(pack.trial_ids), count):
            pack.join(make_spec(f"t{i}", seed=i, batch_size=1), table, sft_terms)
        planner.step()
        passes.append(pack.budget.slots_per_pass)
    assert passes == [1, 1, 2, 2, 2, 2, 2, 8, 8, 8, 8, 8]
    choices = ["one trial per pass", "2 trials per pass", "8 trials per pass"]
    assert [line.split(";")[0].split(",")[0] for line in logged] == [f"packing: {choice}" for choice in choices]


def test_a_choice_made_while_the_machine_was_busy_does_not_last(monkeypatch):
    monkeypatch.setattr(planner_module, "REMEASURE_STEPS", 3)
    monkeypatch.setattr(planner_module, "MEASURING_SHARE", 1.0)
    steps = itertools.count()

    def seconds(pack):  # the timed steps with all slots are hit by something else
        busy = 10 if next(steps) in (1, 6) else 1
        return (pack.num_passes + pack.padded_tokens * 1e-2) * busy

    pack, passes, logged = plan(seconds, steps=26)
    assert "4 trials per pass" in logged[0] and "8 trials per pass" in logged[-1] and passes[-1] == 8
    assert pack.budget.overhead_tokens == 100


def test_measuring_again_takes_a_fiftieth_of_the_time(monkeypatch):
    monkeypatch.setattr(planner_module, "REMEASURE_STEPS", 1)
    _, passes, _ = plan(lambda pack: pack.num_passes * 0.1 + pack.padded_tokens * 1e-2, steps=150)
    again = [at_once for at_once in passes[10:] if at_once != 8]
    assert again and set(again) == {4}  # the next smaller one only
    assert len(again) <= 0.05 * len(passes)


def scarce(monkeypatch, room, recomputed_room=None):
    """Passes of more padded tokens than `room` run out of memory; with recomputation, of more than that."""
    backward = Pack._backward

    def run(self, micro_pack, losses):
        if micro_pack.padded_tokens > (recomputed_room if self.checkpointing and recomputed_room else room):
            raise torch.OutOfMemoryError("out of memory")
        backward(self, micro_pack, losses)

    monkeypatch.setattr(Pack, "_backward", run)


def test_out_of_memory_halves_passes_and_changes_no_result(monkeypatch):
    cost = lambda pack: float(pack.num_passes)  # noqa: E731
    expected, _, _ = plan(cost, steps=9)
    scarce(monkeypatch, room=30)
    pack, _, logged = plan(cost, steps=9)
    assert not pack.checkpointing and pack.budget.max_tokens <= 30
    assert logged[0] == f"packing: out of memory; now max {pack.budget.max_tokens} tokens per pass"
    for name in expected.trial_ids:
        assert distance(pack.weights(name), expected.weights(name)) < 1e-12


def test_a_pass_that_can_not_be_split_is_recomputed(monkeypatch):
    cost = lambda pack: float(pack.num_passes)  # noqa: E731
    expected, _, _ = plan(cost, steps=4)
    scarce(monkeypatch, room=5, recomputed_room=1000)
    pack, _, logged = plan(cost, steps=4)
    assert pack.checkpointing and logged[0].endswith("tokens per pass; activations recomputed")
    for name in expected.trial_ids:
        assert distance(pack.weights(name), expected.weights(name)) < 1e-12


def test_out_of_memory_with_nothing_left_to_try_is_an_error(monkeypatch):
    scarce(monkeypatch, room=1)
    pack = make_pack(make_model(), budget=BUDGET)
    pack.join(make_spec("t"), table_of(make_examples(4), pack.model), sft_terms)
    with pytest.raises(torch.OutOfMemoryError):
        pack.step()


def test_a_probe_without_memory_is_left_out(monkeypatch):
    probe = Pack.probe

    def refuse(self, num_rows):
        if num_rows > 1:
            raise torch.OutOfMemoryError("out of memory")
        return probe(self, num_rows)

    monkeypatch.setattr(Pack, "probe", refuse)
    pack = make_pack(make_model())
    planner = Planner(pack, max_tokens=1000, log=lambda line: None)
    table = table_of(make_examples(20), pack.model)
    for name in "ab":
        pack.join(make_spec(name), table, sft_terms)
    assert all(planner.step().keys() == {"a", "b"} for _ in range(9))
    assert pack.budget.overhead_tokens == planner_module.FIRST_OVERHEAD_TOKENS


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, indices):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Pack, "_gradients", broken)
    pack = make_pack(make_model())
    pack.join(make_spec("t"), table_of(make_examples(4), pack.model), sft_terms)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        pack.step()
    assert pack.budget == BUDGET
