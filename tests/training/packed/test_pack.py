"""A slot of a pack is what it would be alone: against PEFT, torch's AdamW and clip_grad_norm_, in fp64 and fp32."""

import numpy as np
import pytest
import torch
from packed_oracle import (
    BUDGET,
    CONFIGS,
    TwoTerms,
    distance,
    make_examples,
    make_model,
    make_pack,
    make_spec,
    sft_terms,
    solo,
    table_of,
)
from transformers import AutoModelForCausalLM, StableLmConfig

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.batches import PassBudget
from raytune_llm.training.packed.trial_state import TrialState

STEPS = 6
SPECS = [
    make_spec("rank1", lora_rank=1, seed=1),
    make_spec(
        "decay",
        lora_rank=4,
        alpha=8.0,
        weight_decay=0.1,
        seed=2,
        schedule=Schedule.linear,
        num_steps=STEPS,
        warmup_steps=2,
    ),
    make_spec("clipped", lora_rank=8, max_grad_norm=0.05, seed=3, schedule=Schedule.cosine, num_steps=2 * STEPS),
    make_spec(
        "rslora", lora_rank=16, rslora=True, learning_rate=3e-3, seed=4, betas=(0.8, 0.95), eps=1e-6, warmup_steps=3
    ),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(pack, specs, table, steps, terms=sft_terms):
    """Join all, step, and return weights and losses by trial."""
    for spec in specs:
        pack.join(spec, table, terms)
    reports = [pack.step() for _ in range(steps)]
    weights = {spec.trial_id: pack.weights(spec.trial_id) for spec in specs}
    return weights, {spec.trial_id: [report[spec.trial_id] for report in reports] for spec in specs}


# Relative. Gemma 2 and T5Gemma compute attention's softmax in fp32 whatever the dtype. In fp32 Adam's m/√v turns the
# rounding of gradients near 0 into steps of the size of the rate.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-3}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_slots_equal_solo_runs(kind, dtype):
    tolerance = 1e-5 if kind in ("gemma2", "t5gemma") and dtype == torch.float64 else TOLERANCES[dtype]
    examples = make_examples(20, is_encoder_decoder=CONFIGS[kind]().is_encoder_decoder)
    pack = make_pack(make_model(kind, dtype))
    weights, reports = run(pack, SPECS, table_of(examples, pack.model), STEPS)
    for spec in SPECS:
        alone = solo(make_model(kind, dtype), spec, examples, STEPS)
        assert distance(weights[spec.trial_id], alone.weights) < tolerance
        assert [report.metrics["loss"] for report in reports[spec.trial_id]] == pytest.approx(
            alone.losses, rel=tolerance
        )
        assert [report.grad_norm for report in reports[spec.trial_id]] == pytest.approx(alone.grad_norms, rel=tolerance)


def test_join_and_leave_in_mid_flight_change_nothing():
    examples = make_examples(20)
    pack = make_pack(make_model(), capacity=3)
    table = table_of(examples, pack.model)
    for spec in SPECS[:3]:
        pack.join(spec, table, sft_terms)
    finished = {}
    for step in range(1, STEPS + 3):
        pack.step()
        if step == 2:  # the first one makes room; a later one takes its slot
            finished["rank1"] = pack.weights("rank1")
            pack.leave("rank1")
            pack.join(SPECS[3], table, sft_terms)
        if step == STEPS:
            finished |= {name: pack.weights(name) for name in ("decay", "clipped")}
    finished["rslora"] = pack.weights("rslora")
    for spec, steps in zip(SPECS, (2, STEPS, STEPS, STEPS), strict=True):
        assert distance(finished[spec.trial_id], solo(make_model(), spec, examples, steps).weights) < 1e-12


def test_padding_stays_zero_and_every_layer_moves():
    pack = make_pack(make_model())
    table = table_of(make_examples(20), pack.model)
    before = {}
    for spec in SPECS:
        pack.join(spec, table, sft_terms)
        before[spec.trial_id] = pack.weights(spec.trial_id)
    for _ in range(3):
        pack.step()
    for row, spec in enumerate(SPECS):
        whole = pack.stack.read(row, pack.stack.max_lora_rank)
        for name, (a, b) in whole.items():
            assert not a[spec.lora_rank :].any() and not b[:, spec.lora_rank :].any()
            old_a, old_b = before[spec.trial_id][name]
            assert (a[: spec.lora_rank] != old_a).any() and (b[:, : spec.lora_rank] != old_b).any()


def test_a_nan_trial_leaves_its_neighbours_bitwise_unchanged():
    examples = make_examples(20)
    found = []
    for poison in (1.0, float("nan")):
        pack = make_pack(make_model(dtype=torch.float32))
        table = table_of(examples, pack.model)
        for spec in SPECS:
            pack.join(spec, table, sft_terms)
        pack.theta[1] *= poison
        pack.stack.refresh(1, 2)
        reports = [pack.step() for _ in range(3)]
        metrics = {name: scores.metrics() for name, scores in pack.evaluate(table).items()}
        found.append(
            [(pack.weights(name), reports[-1][name], metrics[name]) for name in ("rank1", "clipped", "rslora")]
        )
        assert (reports[-1]["decay"].grad_norm != reports[-1]["decay"].grad_norm) == (poison != 1.0)
    for (healthy, report, metric), (next_to_nan, report_next_to_nan, metric_next_to_nan) in zip(*found, strict=True):
        assert all(torch.equal(x, y) for name in healthy for x, y in zip(healthy[name], next_to_nan[name], strict=True))
        assert report == report_next_to_nan and metric == metric_next_to_nan


BUDGETS = {
    "one after another": PassBudget(1, 1 << 20, 64),
    "three at a time": PassBudget(3, 1 << 20, 0),
    "single rows": PassBudget(64, 1, 0),
    "few tokens": PassBudget(64, 70, 8),
}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_results_do_not_depend_on_the_cut_or_on_neighbours(kind, budget):
    examples = make_examples(20, is_encoder_decoder=kind == "t5")
    whole = make_pack(make_model(kind))
    table = table_of(examples, whole.model)
    expected, expected_reports = run(whole, SPECS, table, 4)
    found, reports = run(make_pack(make_model(kind), budget=budget), SPECS, table, 4)
    alone, _ = run(make_pack(make_model(kind), max_lora_rank=8, budget=budget), SPECS[1:2], table, 4)
    for spec in SPECS:
        assert distance(found[spec.trial_id], expected[spec.trial_id]) < 1e-12
        losses = [[report.metrics["loss"] for report in each[spec.trial_id]] for each in (reports, expected_reports)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert distance(alone["decay"], expected["decay"]) < 1e-12


def test_batch_sizes_may_differ():
    specs = [make_spec(f"batch{size}-{i}", batch_size=size, seed=size + i) for i, size in enumerate((1, 4, 2, 4, 1))]
    examples = make_examples(20)
    pack = make_pack(make_model())
    weights, _ = run(pack, specs, table_of(examples, pack.model), STEPS)
    assert [spec[:6] for spec in pack.trial_ids] == ["batch1", "batch1", "batch4", "batch4", "batch2"]
    for spec in specs:
        assert distance(weights[spec.trial_id], solo(make_model(), spec, examples, STEPS).weights) < 1e-12


DROPOUT = [
    make_spec("whole", dropout=0.3, batch_size=4, seed=11),
    make_spec("halves", dropout=0.1, batch_size=4, micro_batch_size=2, seed=12),
    make_spec("uneven", dropout=0.5, batch_size=4, micro_batch_size=3, seed=13),
    make_spec("none", dropout=0.0, batch_size=4, seed=14),
    make_spec("other", dropout=0.2, batch_size=4, micro_batch_size=2, seed=15),
]


@pytest.mark.parametrize("budget", [BUDGET, BUDGETS["few tokens"]], ids=["whole", "few tokens"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_dropout_stream_is_that_of_a_solo_run(kind, checkpointing, budget):
    examples = make_examples(20, is_encoder_decoder=kind == "t5")
    pack = make_pack(make_model(kind), budget=budget)
    pack.checkpointing = checkpointing
    weights, _ = run(pack, DROPOUT, table_of(examples, pack.model), 4)
    for spec in DROPOUT:
        assert distance(weights[spec.trial_id], solo(make_model(kind), spec, examples, 4).weights) < 1e-12


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_probe_changes_no_trial(kind):
    examples = make_examples(20, is_encoder_decoder=kind == "t5")
    pack = make_pack(make_model(kind))
    expected, _ = run(pack, DROPOUT, table_of(examples, pack.model), 2)
    pack = make_pack(make_model(kind))
    run(pack, DROPOUT, table_of(examples, pack.model), 1)
    assert pack.probe(1) < pack.probe(7)
    pack.step()
    for trial_id in expected:
        assert distance(pack.weights(trial_id), expected[trial_id]) == 0


@pytest.mark.parametrize("budget", [BUDGET, BUDGETS["single rows"]], ids=["whole", "single rows"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_terms_with_two_denominators_swept_among_slots(checkpointing, budget):
    examples = make_examples(20, names=("label", "reason"))
    pack = make_pack(make_model(), budget=budget)
    pack.checkpointing = checkpointing
    table = table_of(examples, pack.model)
    specs = [make_spec(f"t{i}", seed=i, batch_size=5, dropout=0.2 * (i == 2)) for i in range(4)]
    methods = [TwoTerms(0.5), TwoTerms(0.5), TwoTerms(0.9), TwoTerms(0.1)]
    for spec, method in zip(specs, methods, strict=True):
        pack.join(spec, table, method.terms)
    reports = [pack.step() for _ in range(3)]
    for spec, method in zip(specs, methods, strict=True):
        if spec.dropout:
            continue  # which of an example's sequences draws first is nobody's convention
        alone = solo(make_model(), spec, examples, 3, method.terms)
        assert distance(pack.weights(spec.trial_id), alone.weights) < 1e-12
        reported = reports[-1][spec.trial_id].metrics
        assert reported["loss"] == pytest.approx(alone.losses[-1], rel=1e-12)
        assert reported["loss"] == pytest.approx(
            method.alpha * reported["label_loss"] + (1 - method.alpha) * reported["margin"], rel=1e-12
        )


def test_checkpointing_changes_nothing_bitwise_and_keeps_less():
    examples = make_examples(20, names=("label", "reason"))
    found, kept = [], []
    for checkpointing in (False, True):
        pack = make_pack(make_model())
        pack.checkpointing = checkpointing
        sizes: dict[int, int] = {}

        def count(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            weights, _ = run(pack, DROPOUT[:2], table_of(examples, pack.model), 2, TwoTerms(0.5).terms)
        found.append(weights["halves"])
        kept.append(sum(sizes.values()))
        pack.close()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in pack.model.modules())
    assert all(torch.equal(x, y) for name in found[0] for x, y in zip(found[0][name], found[1][name], strict=True))
    assert kept[1] < 0.6 * kept[0]


def test_the_base_is_bitwise_unchanged_and_given_back():
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pack = make_pack(model)
    run(pack, SPECS, table_of(make_examples(20), model), 3)
    pack.close()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(type(module).__name__ == "StackedLinear" for module in model.modules())


def test_a_saved_slot_continues_as_if_nothing_had_happened(tmp_path):
    examples = make_examples(7)  # so that the data wraps around
    spec = make_spec("t", dropout=0.3, weight_decay=0.1, schedule=Schedule.linear, num_steps=8, batch_size=3, seed=5)
    straight = make_pack(make_model())
    table = table_of(examples, straight.model)
    expected, _ = run(straight, [spec], table, 6)
    first = make_pack(make_model())
    run(first, [spec], table, 4)
    first.state("t").save(tmp_path)
    state = TrialState.load(tmp_path)
    assert state.spec == spec and state.step == 4
    second = make_pack(make_model(), max_lora_rank=4)  # another width of rows
    second.join(make_spec("neighbour", batch_size=3), table, sft_terms)
    second.join(state.spec, table, sft_terms, state=state)
    for _ in range(2):
        second.step()
    assert distance(second.weights("t"), expected["t"]) < 1e-12
    alone = make_pack(make_model(), max_lora_rank=16)
    alone.join(state.spec, table, sft_terms, state=state)
    alone.step(), alone.step()
    assert all(
        torch.equal(x, y) for n in expected["t"] for x, y in zip(alone.weights("t")[n], expected["t"][n], strict=True)
    )


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_evaluation_of_slots_and_of_the_base(budget):
    from packed_oracle import plain_outputs

    examples, held_out = make_examples(20), make_examples(9, seed=5)
    pack = make_pack(make_model(), budget=budget)
    weights, _ = run(pack, SPECS, table_of(examples, pack.model), 3)
    table = table_of(held_out, pack.model)
    pack.join(make_spec("untrained"), table, sft_terms)
    found = pack.evaluate(table)
    assert found.keys() == {spec.trial_id for spec in SPECS} | {"untrained"}
    base = found["untrained"].metrics()
    plain = plain_outputs(make_model(), [example["completion"] for example in held_out])
    assert base["eval/loss"] == pytest.approx((-plain.logprobs.sum() / plain.mask.sum()).item(), rel=1e-12)
    assert base["eval/token_accuracy"] == pytest.approx((plain.correct.sum() / plain.mask.sum()).item(), rel=1e-12)
    some = pack.evaluate(table, ["rslora", "rank1"])
    for spec in SPECS:
        other = make_pack(make_model())
        other.join(spec, table, sft_terms, weights=weights[spec.trial_id])
        expected = other.evaluate(table)[spec.trial_id].metrics()
        assert expected.keys() == {"eval/loss", "eval/token_accuracy", "eval/perplexity"}
        assert found[spec.trial_id].metrics() == pytest.approx(expected, rel=1e-12)
        assert spec.trial_id not in some or some[spec.trial_id].metrics() == pytest.approx(expected, rel=1e-12)
        assert expected["eval/loss"] != pytest.approx(base["eval/loss"], rel=1e-6)


def test_evaluation_out_of_memory_takes_smaller_passes_and_changes_no_result(monkeypatch):
    pack = make_pack(make_model())
    table = table_of(make_examples(20), pack.model)
    run(pack, SPECS, table, 2)
    expected = {name: scores.metrics() for name, scores in pack.evaluate(table).items()}
    outputs, largest = pack.head.outputs, [0]

    def scarce(batch):
        if batch.input_ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest[0] = max(largest[0], batch.input_ids.numel())
        return outputs(batch)

    monkeypatch.setattr(pack.head, "outputs", scarce)
    found = pack.evaluate(table)
    assert 0 < largest[0] <= 60
    for name, metrics in expected.items():
        assert found[name].metrics() == pytest.approx(metrics, rel=1e-12)


def test_evaluation_of_one_example_that_does_not_fit_is_an_error(monkeypatch):
    def refuse(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pack = make_pack(make_model())
    table = table_of(make_examples(4), pack.model)
    pack.join(SPECS[0], table, sft_terms)
    monkeypatch.setattr(pack.head, "outputs", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        pack.evaluate(table)


def test_bf16_base_keeps_fp32_masters_near_an_fp32_run():
    examples = make_examples(20)
    pack = make_pack(make_model(dtype=torch.bfloat16))
    assert pack.theta.dtype == torch.float32 == pack.grad.dtype
    spec = make_spec(
        "t", lora_rank=8, learning_rate=1e-4, seed=3
    )  # updates far below bf16's resolution of most weights
    weights, reports = run(pack, [spec], table_of(examples, pack.model), STEPS)
    alone = solo(make_model(dtype=torch.bfloat16), spec, examples, STEPS)
    assert distance(weights["t"], alone.weights) < 2e-3
    assert [report.metrics["loss"] for report in reports["t"]] == pytest.approx(alone.losses, rel=1e-2)


def test_wrong_use_is_refused():
    pack = make_pack(make_model(), capacity=1, max_lora_rank=4)
    table = table_of(make_examples(4), pack.model)
    with pytest.raises(ValueError, match=r"rank 8 at .* is more than 4"):
        pack.join(make_spec("wide", lora_rank=8), table, sft_terms)
    pack.join(make_spec("t"), table, sft_terms)
    with pytest.raises(ValueError, match="1 slots are taken; u must wait"):
        pack.join(make_spec("u"), table, sft_terms)
    with pytest.raises(ValueError, match=r"trial u is not in the pack; it holds \['t'\]"):
        pack.leave("u")


def test_a_dropout_stream_of_another_kind_of_device_starts_anew():
    pack = make_pack(make_model())
    table = table_of(make_examples(8), pack.model)
    spec = make_spec("t", dropout=0.3)
    pack.join(spec, table, sft_terms)
    pack.step()
    state = pack.state("t")
    state.tensors["generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as CUDA's
    other = make_pack(make_model())
    other.join(spec, table, sft_terms, state=state)
    assert other.step()["t"].step == 2


def test_trials_on_records_that_begin_alike_equal_solo_runs():
    """Rows of a slot then read their common beginning once."""
    prefix, examples = list(range(3, 20)), []
    for example in make_examples(20):
        own = example["completion"]
        labels = [IGNORED] * len(prefix) + own.labels
        examples.append({"completion": TokenSequence(prefix + own.input_ids, labels)})
    pack = make_pack(make_model("llama", torch.float64))
    assert pack.head.shares_prefix
    table = table_of(examples, pack.model)
    weights, reports = run(pack, SPECS, table, STEPS)
    batch = table.batch("completion", np.arange(6), share_among=2)
    assert batch.shared_prefix.prefix_tokens == len(prefix) and len(batch.input_ids) == 2
    scores = pack.evaluate(table)
    for spec in SPECS:
        alone = solo(make_model("llama", torch.float64), spec, examples, STEPS)
        assert distance(weights[spec.trial_id], alone.weights) < 1e-6
        losses = [report.metrics["loss"] for report in reports[spec.trial_id]]
        assert losses == pytest.approx(alone.losses, rel=1e-6)
    pack.head.shares_prefix = False
    for trial_id, own in pack.evaluate(table).items():
        assert scores[trial_id].metrics()["eval/loss"] == pytest.approx(own.metrics()["eval/loss"], rel=1e-6)


def test_a_base_whose_attention_is_not_ours_keeps_its_rows():
    assert not make_pack(make_model("gemma2", torch.float32)).head.shares_prefix
    eager = make_model("llama", torch.float32)
    eager.set_attn_implementation("eager")
    assert not make_pack(eager).head.shares_prefix


def test_a_base_that_ignores_the_layout_keeps_its_rows_in_half_precision_too():
    """StableLM takes any argument; near uniform, its bfloat16 log-probabilities hardly differ by it."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(StableLmConfig(vocab_size=97, num_key_value_heads=4, **sizes))
        assert not make_pack(model.to(dtype).eval()).head.shares_prefix
        assert make_pack(make_model("llama", dtype)).head.shares_prefix
