"""Trials of a pack and their checkpoints: what is written later, on another thread or after a crash, is what would
have been written at once."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from worlds import precomputed, spec_of, write_base, write_records

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.training import checkpoints
from raytune_llm.training.history import FILE, read_reports
from raytune_llm.training.packed import pending_report, trials
from raytune_llm.training.packed.export import SlotSaver
from raytune_llm.training.packed.pending_report import StateTimer
from raytune_llm.training.packed.trials import PackedTrials

STEPS, EVERY = 12, 2
WEIGHTS, STATE = "best/adapter_model.safetensors", "state/slot.safetensors"


class Log:
    def __init__(self):
        self.lines, self.failed = [], None

    def log(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def finish(self, summary, failed):
        self.failed = failed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", "llama"), *write_records(folder)


@pytest.fixture(scope="module")
def examples(world):
    return precomputed(job_of(world, "unused")).examples


def job_of(world, home, *overrides):
    base, train, evaluation = world
    return load(
        "train",
        [
            *(f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}", "run=r"),
            *(f"tuning.eval_every={EVERY}", "tuning.batch_size=4", f"tuning.steps={STEPS}", "tuning.adapter_size=4"),
            *("tuning.early_stopping.patience=null", "name=t", "adapter.dropout=0.1", "model.learning_rate=1e-2"),
            *overrides,
        ],
    )


@pytest.fixture
def opened(world, examples):
    """Makes packs with the trials of these ids, each under its own name below `home`."""
    made = []

    def open_pack(home, *ids, **options):
        job = job_of(world, home)
        pack = PackedTrials(
            job.trial_config(), examples, wanted=4, max_lora_rank=8, device="cpu", log=lambda _: None, **options
        )
        made.append(pack)
        specs = {id: spec_of(job, id=id) for id in ids}
        logs = {id: Log() for id in ids}
        pack.joined = {id: pack.join(spec, logs[id]) for id, spec in specs.items()}
        pack.specs, pack.logs, pack.job = specs, logs, job
        return pack

    yield open_pack
    for pack in made:
        pack.close()


def until(pack, step):
    """Store every report up to a step."""
    while pack.trials and next(iter(pack.trials.values())).history.last_step < step:
        for pending in pack.advance():
            pending.store()
            if pending.ended is not None:
                pack.leave(pending.trial_id)


def evaluated(reports):
    """What of reports depends on no clock."""
    return [(report.step, report.metrics["eval/loss"], report.metrics["train/loss"]) for report in reports]


def alike(found, expected):
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def files_of(folder):
    return {str(file.relative_to(folder)): file for file in Path(folder).rglob("*") if file.is_file()}


def test_files_written_later_are_those_written_at_once(opened, tmp_path):
    """A slow writer gets the trials two steps after their reports, and one has left."""
    pack = opened(tmp_path / "home", "a", "b")
    while not (pending := pack.advance()):
        pass
    at_once = {}
    for one in pending:
        folder = tmp_path / "at-once" / one.trial_id
        snapshot = pack.pack.snapshot(one.trial_id, moments=True)
        saver = SlotSaver(snapshot, pack.lora_config, pack.config.model.name_or_path)
        saver.save_weights(folder / "best")
        saver.save_state(folder / "state")
        pack.trials[one.trial_id].history.save(folder)
        at_once[one.trial_id] = folder
    pack.advance()
    pack.leave("a")
    pack.advance()
    for one in pending:
        one.store()
        found = files_of(checkpoints.latest(one.directory))
        expected = files_of(at_once[one.trial_id])
        assert found.keys() == expected.keys() == {FILE, WEIGHTS, STATE, "best/adapter_config.json"}
        for name in found.keys() - {STATE}:
            assert found[name].read_bytes() == expected[name].read_bytes(), name
        one, other = (trials.TrialState.load(files[STATE].parent) for files in (found, expected))
        assert (one.spec, one.step) == (other.spec, other.step)  # safetensors writes them in any order
        assert_close(one.tensors, other.tensors, rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed(world, examples, tmp_path_factory):
    """Reports, and the best adapter of a trial that nothing disturbs."""
    job = job_of(world, tmp_path_factory.mktemp("home"))
    pack = PackedTrials(job.trial_config(), examples, wanted=4, max_lora_rank=8, device="cpu", log=lambda _: None)
    spec = spec_of(job, id="a")
    pack.join(spec, Log())
    until(pack, STEPS)
    stored = checkpoints.latest(spec.directory)
    assert WEIGHTS in files_of(stored) and STATE not in files_of(stored), "a trial that has ended needs no state"
    pack.close()
    return evaluated(read_reports(stored)), load_file(Path(stored, WEIGHTS))


def finished_as(pack, undisturbed):
    """Train trial a to its end, alone in a pack; it must come to what it comes to undisturbed."""
    until(pack, STEPS)
    stored = checkpoints.latest(pack.specs["a"].directory)
    alike(evaluated(read_reports(stored)), undisturbed[0])
    assert_close(load_file(Path(stored, WEIGHTS)), undisturbed[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("states", [1, 2])
def test_a_trial_resumes_from_a_state_older_than_its_last_report(opened, tmp_path, monkeypatch, undisturbed, states):
    """It repeats the steps between, reports and logs none of them twice, and keeps what was best."""
    monkeypatch.setattr(pending_report, "STATE_SHARE", 1e-9)
    pack = opened(tmp_path, "a")
    for _ in range(states - 1):
        until(pack, EVERY)
        pack._timers["a"].due_at = 0.0
    until(pack, 3 * EVERY)
    stored = checkpoints.latest(pack.specs["a"].directory)
    with checkpoints.open_state(stored) as folder:
        assert trials.TrialState.load(folder).step == states * EVERY
    again = opened(tmp_path, "a")
    reports, ended = again.joined["a"]
    assert [report.step for report in reports] == [2, 4, 6] and ended is None
    assert again.pack.steps_done("a") == states * EVERY
    while again.pack.steps_done("a") < 3 * EVERY:
        assert not again.reports_next("a") and again.advance() == []
    assert again.logs["a"].lines == []
    finished_as(again, undisturbed)
    assert [step for step, metrics in again.logs["a"].lines if "eval/loss" in metrics] == [8, 10, 12]


def test_without_a_state_it_begins_again(opened, tmp_path, undisturbed):
    pack = opened(tmp_path, "a")
    while not (pending := pack.advance()):
        pass
    pending[0].publish()
    again = opened(tmp_path, "a")
    assert [report.step for report in again.joined["a"][0]] == [EVERY] and again.pack.steps_done("a") == 0
    finished_as(again, undisturbed)


def test_a_trial_that_has_ended_takes_no_slot_again(opened, tmp_path):
    until(opened(tmp_path, "a"), STEPS)
    again = opened(tmp_path, "a")
    reports, ended = again.joined["a"]
    assert ended == "complete" and reports[-1].step == STEPS
    assert again.trials == {} and again.pack.trial_ids == [] and again.logs["a"].failed is False


KILLED_AT = {
    "before anything": (pending_report.checkpoints, "publish"),
    "mid-write": (trials.SlotSaver, "save_weights"),
    "before the rename": (Path, "rename"),
    "before older ones go": (checkpoints.open_storage("/").__class__, "remove"),
    "before the state": (pending_report.checkpoints, "put_state"),
    "before the state's rename": (Path, "replace"),
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_killed_while_it_stores_a_report_nothing_published_is_lost(opened, tmp_path, undisturbed, moment):
    """A child process stores the third report and is killed with SIGKILL on the way."""
    pack = opened(tmp_path, "a")
    until(pack, 2 * EVERY)
    pack._timers["a"].due_at = 0.0
    while not (pending := pack.advance()):
        pass
    child = os.fork()
    if child == 0:
        owner, name = KILLED_AT[moment]
        setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        if moment == "mid-write":
            owner.save_weights = lambda self, folder: (
                folder.mkdir(),
                (folder / "adapter_model.safetensors").write_bytes(b"half"),
                os.kill(os.getpid(), signal.SIGKILL),
            )
        pending[0].store()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    again = opened(tmp_path, "a")
    published = moment in ("before older ones go", "before the state", "before the state's rename")
    expected = [2, 4, 6] if published else [2, 4]
    assert [report.step for report in again.joined["a"][0]] == expected
    finished_as(again, undisturbed)
    left = {file.name for file in Path(again.specs["a"].directory).iterdir()}
    assert left == {f"checkpoint_{STEPS:06d}"}, "leftovers of the killed process"


def test_states_are_written_for_a_share_of_the_time():
    now = 100.0
    timer = StateTimer(clock=lambda: now)
    assert timer.is_due()
    timer.wrote(2.0, num_trials=3)
    now += 2.0 * 3 * (1 / pending_report.STATE_SHARE - 1) - 0.1
    assert not timer.is_due()
    now += 0.2
    assert timer.is_due()


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("where", ["join", "_arrange"])
def test_a_join_out_of_memory_is_tried_again_and_then_fails_that_trial_alone(
    opened, tmp_path, monkeypatch, undisturbed, failures, where
):
    """Also when the slot is half taken."""
    pack = opened(tmp_path, "a")
    original, left = getattr(pack.pack, where), [failures]

    def short_of_memory(*arguments, **options):
        if left[0] > 0 and len(pack.pack.trial_ids) == (1 if where == "join" else 2):
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(*arguments, **options)

    monkeypatch.setattr(pack.pack, where, short_of_memory)
    log = Log()
    reports, ended = pack.join(spec_of(pack.job, id="b"), log)
    assert reports == [] and left == [0]
    if failures == 1:
        assert ended is None and pack.pack.trial_ids == ["a", "b"] and log.failed is None
        pack.leave("b")
    else:
        assert ended.startswith("failed: out of memory when the trial joined 1 others") and log.failed is True
        assert pack.pack.trial_ids == ["a"]
    finished_as(pack, undisturbed)


def test_a_join_that_fails_otherwise_raises(opened, tmp_path, monkeypatch):
    pack = opened(tmp_path, "a")

    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pack.pack, "join", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        pack.join(pack.specs["a"], Log())


def test_a_base_that_can_not_be_compiled_trains_as_it_is_or_is_refused_by_who_asked(
    monkeypatch, world, examples, tmp_path
):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: no_compiler)
    lines = []
    options = {"wanted": 1, "max_lora_rank": 4, "device": "cpu", "log": lines.append}
    config = job_of(world, tmp_path).trial_config()
    with pytest.raises(
        InputError, match=r"compile=true: torch\.compile of \w+ failed: Failed to find C compiler\.; set it"
    ):
        PackedTrials(config, examples, **options, compile=True)
    monkeypatch.setattr(trials, "compiles_by_itself", lambda device: True)  # as on a GPU
    pack = PackedTrials(config, examples, **options)
    assert len(lines) == 1 and lines[0].endswith("Failed to find C compiler.; continuing without")
    assert not any("forward" in vars(module) for module in pack.model.modules())
    pack.close()


def test_a_compiled_pack_learns_what_a_plain_one_learns(world, examples, tmp_path):
    losses = []
    for compile in (True, False):
        options = {"wanted": 2, "max_lora_rank": 4, "device": "cpu", "log": lambda line: None, "compile": compile}
        job = job_of(world, tmp_path / str(compile))
        pack = PackedTrials(job.trial_config(), examples, **options)
        pack.join(spec_of(job, id="t"), Log())
        losses.append([pack.pack.step()["t"].metrics["loss"] for _ in range(4)])
        pack.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packs_that_share_a_machine_share_its_memory(world, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "free_bytes", lambda device: 2_000_000)
    capacities = []
    for num_sharing in (1, 4):
        options = {"wanted": 64, "max_lora_rank": 4, "device": "cpu", "log": lambda line: None}
        config = job_of(world, tmp_path).trial_config()
        pack = PackedTrials(config, examples, **options, num_sharing=num_sharing)
        capacities.append(pack.capacity)
        pack.close()
    assert 1 <= capacities[1] == capacities[0] // 4
