"""A snapshot is the slot at its moment, whatever the pack does afterwards."""

from dataclasses import replace

import pytest
import torch
from packed_oracle import make_examples, make_model, make_pack, make_spec, sft_terms, table_of
from torch.testing import assert_close

from raytune_llm.training.packed.snapshot import to_host


@pytest.fixture
def pack():
    """Three slots of unequal rank after two steps, one with dropout."""
    pack = make_pack(make_model("llama", dtype=torch.float32))
    table = table_of(make_examples(20), pack.model)
    for spec in (
        make_spec("a", lora_rank=2),
        make_spec("b", lora_rank=8, dropout=0.2, seed=2),
        make_spec("c", seed=3),
    ):
        pack.join(spec, table, sft_terms)
    for _ in range(2):
        pack.step()
    return pack


def exact(found, expected):
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("trial_id", ["a", "b", "c"])
def test_it_holds_the_rows_as_the_pack_has_them(pack, trial_id):
    row = pack.trial_ids.index(trial_id)
    state, spec = pack.snapshot(trial_id, moments=True).state(), pack.state(trial_id).spec
    assert (state.spec, state.step) == (spec, 2)
    tables = {"theta": pack.stack.theta, "m": pack.optimizer.m, "v": pack.optimizer.v}
    expected = {
        f"{key}.{side}.{name}": part
        for key, table in tables.items()
        for name, pair in pack.stack.layout.unpack(table[row], spec.lora_rank).items()
        for side, part in zip("ab", pair, strict=True)
    }
    assert state.tensors.keys() == expected.keys() | {"generator"}
    exact({name: state.tensors[name] for name in expected}, expected)
    exact(pack.snapshot(trial_id, moments=False).weights(), pack.weights(trial_id))


def test_later_steps_and_leavers_do_not_change_it(pack):
    expected = pack.state("b")
    snapshot = pack.snapshot("b", moments=True)
    pack.step()
    pack.leave("a")
    pack.step()
    found = snapshot.state()
    assert found.step == expected.step == 2
    exact(found.tensors, expected.tensors)
    assert not torch.equal(pack.snapshot("b", moments=False).rows["theta"], snapshot.rows["theta"])


def test_without_moments_it_is_no_state(pack):
    with pytest.raises(KeyError, match="m"):
        pack.snapshot("a", moments=False).state()


def test_on_the_host_a_row_is_copied_at_once():
    row = torch.arange(4.0)
    copy = to_host(row)
    row.zero_()
    exact(copy, torch.arange(4.0))


class Copying:
    """As a CUDA event: the rows arrive when it is waited for."""

    def __init__(self, rows, arriving):
        self.rows, self.arriving = rows, arriving

    def synchronize(self):
        for key, row in self.arriving.items():
            self.rows[key].copy_(row)


def test_whoever_reads_it_waits_for_the_copies(pack):
    snapshot = pack.snapshot("b", moments=True)
    rows = {key: torch.full_like(row, torch.nan) for key, row in snapshot.rows.items()}
    for read in ("state", "weights", "heads"):
        late = replace(snapshot, rows=rows, copied=Copying(rows, snapshot.rows))
        found, expected = getattr(late, read)(), getattr(snapshot, read)()
        exact(*((one.tensors if read == "state" else one) for one in (found, expected)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only there do copies run behind the host")
def test_on_a_gpu_the_copy_is_the_row_before_the_next_update():
    table = torch.zeros(2, 1 << 26, device="cuda")
    for step in range(1, 4):
        table.fill_(step)
        copy, copied = to_host(table[0]), torch.cuda.Event(blocking=True)
        copied.record()
        table.fill_(-1)
        copied.synchronize()
        assert copy.is_pinned() and bool((copy == step).all())
