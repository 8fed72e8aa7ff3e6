"""A slot's score head is what it would be alone: trained, clipped, stored and exported with its adapter."""

import pytest
import torch
from packed_oracle import (
    BUDGET,
    distance,
    make_examples,
    make_model,
    make_pack,
    make_spec,
    plain_outputs,
    solo,
    table_of,
)
from peft import PeftModel

from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs
from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.models.base import linear_targets
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.batches import PassBudget
from raytune_llm.training.packed.eligibility import not_packable_reason
from raytune_llm.training.packed.export import export_adapter
from raytune_llm.training.packed.memory import slot_bytes
from raytune_llm.training.packed.trial_state import TrialState

STEPS = 5
ADAPTER = LoRA(rate_factor=1.0, alpha=16.0, dropout=0.0, targets=None, rslora=False, dora=False)
SPECS = [
    make_spec("rank1", lora_rank=1, seed=1),
    make_spec("clipped", lora_rank=8, max_grad_norm=0.05, seed=3, schedule=Schedule.cosine, num_steps=2 * STEPS),
    make_spec("decay", lora_rank=4, weight_decay=0.1, seed=2, dropout=0.2),
]


def pair_terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
    margin = outputs["chosen"].score - outputs["rejected"].score
    return {"preference_loss": Term(torch.nn.functional.softplus(-margin), torch.ones_like(margin))}


def one_terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
    score = outputs["completion"].score
    return {"square_loss": Term((score - 1).square(), torch.ones_like(score))}


def joined(kind="llama", dtype=torch.float64, names=("completion",), terms=one_terms, budget=BUDGET, specs=SPECS):
    examples = make_examples(20, names=names)
    pack = make_pack(make_model(kind, dtype, score=True), budget=budget)
    table = table_of(examples, pack.model)
    for spec in specs:
        pack.join(spec, table, terms)
    return pack, table, examples


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3"])
@pytest.mark.parametrize("budget", [BUDGET, PassBudget(2, 70, 8)], ids=["whole", "cut"])
def test_slots_with_heads_equal_solo_runs(kind, budget):
    pack, _, examples = joined(kind, budget=budget)
    reports = [pack.step() for _ in range(STEPS)]
    start = pack.head.initial()["score"]
    for spec in SPECS:
        alone = solo(make_model(kind, score=True), spec, examples, STEPS, one_terms)
        name = spec.trial_id
        assert distance(pack.weights(name), alone.weights) < 1e-12
        torch.testing.assert_close(pack.heads(name)["score"], alone.head, rtol=1e-12, atol=1e-12)
        assert (pack.heads(name)["score"] - start).abs().min() > 0
        assert [r[name].metrics["loss"] for r in reports] == pytest.approx(alone.losses, rel=1e-12)
        assert [r[name].grad_norm for r in reports] == pytest.approx(alone.grad_norms, rel=1e-12)


def test_pairs_equal_solo_runs():
    specs = [spec for spec in SPECS if not spec.dropout]
    pack, _, examples = joined(names=("chosen", "rejected"), terms=pair_terms, specs=specs)
    for _ in range(STEPS):
        pack.step()
    for spec in specs:
        alone = solo(make_model(score=True), spec, examples, STEPS, pair_terms)
        assert distance(pack.weights(spec.trial_id), alone.weights) < 1e-12


def test_a_nan_head_leaves_its_neighbours_bitwise_unchanged():
    found = []
    for poison in (1.0, float("nan")):
        pack, table, _ = joined(dtype=torch.float32)
        pack.stack.layout.head_views(pack.theta)["score"][1] *= poison
        pack.stack.refresh(1, 2)
        for _ in range(3):
            pack.step()
        metrics = {name: scores.metrics() for name, scores in pack.evaluate(table).items()}
        found.append([(pack.heads(s.trial_id)["score"], metrics[s.trial_id]) for s in (SPECS[0], SPECS[2])])
    for (head, metric), (next_to_nan, metric_next_to_nan) in zip(*found, strict=True):
        assert torch.equal(head, next_to_nan) and metric == metric_next_to_nan


def test_saved_and_loaded_it_continues_as_before(tmp_path):
    pack, _, _ = joined()
    for _ in range(2):
        pack.step()
    pack.state("clipped").save(tmp_path)
    for _ in range(3):
        pack.step()
    other, table, _ = joined(specs=SPECS[:1])
    other.join(SPECS[1], table, one_terms, state=TrialState.load(tmp_path))
    for _ in range(3):
        other.step()
    found, expected = other.heads("clipped")["score"], pack.heads("clipped")["score"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_state_without_the_head_is_refused(tmp_path):
    pack, table, _ = joined()
    state = pack.state("rank1")
    pack.leave("rank1")
    for key in ("theta", "m", "v"):
        del state.tensors[f"{key}.head.score"]
    with pytest.raises(ValueError, match="no heads"):
        pack.join(SPECS[0], table, one_terms, state=state)


def test_peft_loads_an_exported_slot_with_equal_scores(tmp_path):
    pack, table, examples = joined()
    for _ in range(3):
        pack.step()
    config = ADAPTER.config(make_model(score=True), lora_rank=8)
    export_adapter(tmp_path, pack.weights("clipped"), config, base="some/base", heads=pack.heads("clipped"))
    loaded = PeftModel.from_pretrained(make_model(score=True), str(tmp_path)).eval()
    with torch.no_grad():
        expected = plain_outputs(loaded, [example["completion"] for example in examples]).score
    scores = pack.evaluate(table, ["clipped"])["clipped"].terms["square_loss"].sum
    torch.testing.assert_close(torch.from_numpy(scores), (expected - 1).square(), rtol=1e-10, atol=1e-10)


def test_only_linear_heads_pack():
    class Learner:
        needs = Needs()

        def terms(self, outputs):
            return {}

    for kind, packs in (("llama", True), ("t5", False), ("gpt_neox", False)):
        model = make_model(kind, score=True)
        found = not_packable_reason(ADAPTER.config(model, lora_rank=4), Learner(), model)
        wanted = None if packs else f"{type(model).__name__}'s score is not one linear map of the last token's"
        assert found == wanted or found.startswith(wanted)


def test_a_slot_is_counted_with_its_head():
    model = make_model(score=True)
    assert slot_bytes(model, linear_targets(model), 4) - slot_bytes(make_model(), linear_targets(model), 4) == 32 * 40
