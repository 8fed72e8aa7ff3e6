"""With alpha 1 distilling step-by-step is supervised fine-tuning on the labels, to the last digits."""

import pytest
from packed_oracle import BUDGET, distance, make_spec
from worlds import write_base, write_records

from raytune_llm.data.records import Rationale, Supervised
from raytune_llm.jobs import config
from raytune_llm.jobs.prepare import prepare
from raytune_llm.models.base import linear_targets
from raytune_llm.training.packed.batches import TokenTable
from raytune_llm.training.packed.pack import Pack


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_alpha_one_is_sft(shape, tmp_path):
    """In fp64: the same adapter and order of examples; the rationale task runs in addition and changes nothing."""
    train, evaluation = write_records(tmp_path, kinds=(Rationale,))
    common = [
        f"model.name_or_path={write_base(tmp_path / 'base', shape)}",
        f"data.train={train}",
        f"data.eval={evaluation}",
    ]
    dss, sft = (config.load("train", [*common, *own]) for own in (["method=dss", "method.alpha=1"], ["method=sft"]))
    prepared = prepare(dss)
    supervised = [Supervised(record.prompt, record.label) for record in prepared.splits.train]
    model = dss.model.load().double()
    pack = Pack(model, linear_targets(model), capacity=2, max_lora_rank=4, budget=BUDGET)
    for name, method, records in (
        ("dss", dss.method, prepared.splits.train),
        ("sft", sft.method, supervised),
    ):
        examples = [method.encode(record, prepared.tokens) for record in records]
        table = TokenTable(examples, is_encoder_decoder=shape == "t5")
        pack.join(make_spec(name, batch_size=4), table, method.terms)
    for _ in range(5):
        reports = pack.step()
        assert reports["dss"].metrics["loss"] == pytest.approx(reports["sft"].metrics["loss"], rel=1e-12)
    assert distance(pack.weights("dss"), pack.weights("sft")) < 1e-12
