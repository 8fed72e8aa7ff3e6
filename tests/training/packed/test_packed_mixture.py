"""Trials on parts of the records and on mixtures of sources share one table, and are what they would be alone."""

import json

import numpy as np
import pytest
from packed_oracle import distance, make_examples, make_model, make_pack, make_spec, sft_terms, solo, table_of
from safetensors.torch import load_file
from worlds import WORDS, Silent, spec_of, supervised, write_base

from raytune_llm.jobs.config import load
from raytune_llm.jobs.precompute import Precomputed
from raytune_llm.jobs.prepare import prepare, with_sources
from raytune_llm.training.packed.trial_state import TrialState
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit

STEPS = 8
EXAMPLES = make_examples(20)
SOURCES = np.array([0] * 8 + [1] * 12)
SPECS = [
    make_spec("whole"),
    make_spec("quarter", subset=0.25, weights=(1.0, 1.0)),
    make_spec("more of one", weights=(2.0, 0.5), seed=2),
    make_spec("without one", subset=0.5, weights=(0.0, 1.0), dropout=0.2, micro_batch_size=2),
]


def test_slots_with_shares_and_weights_equal_solo_runs():
    pack = make_pack(make_model())
    table = table_of(EXAMPLES, pack.model, SOURCES)
    for spec in SPECS:
        pack.join(spec, table, sft_terms)
    losses = [{id: report.metrics["loss"] for id, report in pack.step().items()} for _ in range(STEPS)]
    for spec in SPECS:
        alone = solo(make_model(), spec, EXAMPLES, STEPS, sources=SOURCES)
        assert distance(pack.weights(spec.trial_id), alone.weights) < 1e-12
        assert [step[spec.trial_id] for step in losses] == pytest.approx(alone.losses, rel=1e-12)


@pytest.mark.parametrize("spec", SPECS[1:], ids=lambda spec: spec.trial_id)
def test_a_resumed_slot_continues_in_its_order(tmp_path, spec):
    pack = make_pack(make_model())
    table = table_of(EXAMPLES, pack.model, SOURCES)
    pack.join(spec, table, sft_terms)
    for _ in range(STEPS // 2):
        pack.step()
    pack.state(spec.trial_id).save(tmp_path)
    state = TrialState.load(tmp_path)
    assert state.spec == spec
    again = make_pack(make_model())
    again.join(state.spec, table_of(EXAMPLES, again.model, SOURCES), sft_terms, state=state)
    for _ in range(STEPS - STEPS // 2):
        again.step()
    assert (
        distance(again.weights(spec.trial_id), solo(make_model(), spec, EXAMPLES, STEPS, sources=SOURCES).weights)
        < 1e-12
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Of two files, with different words."""
    folder = tmp_path_factory.mktemp("world")
    for name, words in (("animals", WORDS[:6]), ("verbs", WORDS[6:12])):
        lines = [json.dumps(supervised([words[i % 6], words[i % 5], words[i % 4]])) for i in range(24)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    given = [f"data.train=[{folder}/animals.jsonl,{folder}/verbs.jsonl]", f"data.eval={folder}/animals.jsonl"]
    given += [f"model.name_or_path={write_base(folder / 'base', 'llama')}", f"home={folder}/home", "run=r"]
    given += [f"tuning.steps={STEPS}", f"tuning.eval_every={STEPS // 2}", "tuning.batch_size=4"]
    return load("train", [*given, "tuning.adapter_size=4", "model.learning_rate=1e-2", "model.dtype=float32"])


@pytest.mark.parametrize(
    "values",
    [{"data.subset": 0.25}, {"data.weights.animals": 0.5, "data.weights.verbs": 2.0}, {"data.weights.verbs": 0}],
)
def test_a_packed_trial_reports_what_it_does_alone(tmp_path, job, values):
    job = job.with_values({**values, "home": str(tmp_path)})
    prepared, spec = prepare(job), spec_of(job)
    examples = with_sources(Precomputed(prepared.encoded, prepared.examples), job, prepared.splits)
    alone, packed = [], []
    fit(
        spec,
        examples,
        WorkerContext(tmp_path / "alone", 0, 1, False),
        report=lambda metrics, _: alone.append(metrics),
        run=Silent(),
        progress=lambda *_: None,
        resume=None,
    )
    pack = PackedTrials(job.trial_config(), examples, wanted=1, max_lora_rank=4, device="cpu", log=lambda _: None)
    pack.join(spec, Silent())
    while pack.trials:
        for pending in pack.advance():
            pending.publish()
            packed.append(pending.report.metrics)
            if pending.ended is not None:
                pack.leave(pending.trial_id)
    names = ["train/loss", "eval/loss", "eval/bits_per_byte", "eval/token_accuracy"]
    assert len(packed) == len(alone) == 2
    for one, other in zip(packed, alone, strict=True):
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-4)
    assert load_file(tmp_path / "alone" / "checkpoint" / "best" / "adapter_model.safetensors")
