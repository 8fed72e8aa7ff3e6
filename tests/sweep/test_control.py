"""Commands as files: none is lost and none comes back after its answer, whoever is killed and whenever."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from raytune_llm.errors import InputError
from raytune_llm.sweep import control
from raytune_llm.sweep.control import Action, Answer, Commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory"])
def run_dir(request, tmp_path):
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/runs/wit/r"


def driver(run_dir):
    """The commands as a driver that has just been started sees them."""
    return Commands(run_dir)


def test_commands_come_in_order_and_each_until_its_answer(run_dir):
    client = Commands(run_dir)
    sent = [
        client.send(Action.stop, trial="t0003"),
        client.send(Action.clone, trial="t0001", values={"tuning.learning_rate_multiplier": 0.5}),
        client.send(Action.extend, space={"tuning": {"adapter_size": [32, 64]}}),
    ]
    commands = driver(run_dir)
    assert commands.pending() == sent
    assert client.answer_of(sent[0].id) is None
    commands.answer(sent[0], done=True, text="t0003 reports once more")
    commands.answer(sent[2], done=False, text="no such key")
    assert commands.pending() == driver(run_dir).pending() == [sent[1]]
    assert client.wait(sent[0].id, 0) == Answer(command=sent[0].id, done=True, text="t0003 reports once more")
    assert client.answer_of(sent[2].id).done is False
    assert client.wait(sent[1].id, 0) is None


def test_a_command_whose_giver_has_a_slow_clock_is_not_missed(run_dir, monkeypatch):
    client, commands = Commands(run_dir), driver(run_dir)
    later = client.send(Action.pause)
    commands.answer(later, done=True, text="")
    monkeypatch.setattr(control.time, "time_ns", lambda: 5)
    earlier = client.send(Action.resume)
    assert commands.pending() == driver(run_dir).pending() == [earlier]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x", b"{", "Invalid JSON"),
        ("x", b'{"id": "x", "action": "explode"}', "action: Input should be"),
        ("x", b'{"id": "y", "action": "pause"}', "its id is y"),
        ("x", b'{"id": "x", "action": "stop"}', "one of trial=ID and quantile=NUMBER"),
        ("x", b'{"id": "x", "action": "stop", "quantile": "most"}', "quantile: Input should be"),
        ("x", b"\xff\xfe", "no command"),
    ],
)
def test_what_is_no_command_is_refused_and_stops_nothing(run_dir, name, content, why):
    client, commands = Commands(run_dir), driver(run_dir)
    client._storage.write(f"commands/{name}.json", content)
    sent = client.send(Action.pause)
    assert commands.pending() == [sent] and client.answer_of(name) is None, "it may still be written"
    assert commands.pending() == [sent]
    answer = client.answer_of(name)
    assert not answer.done and why in answer.text
    assert driver(run_dir).pending() == [sent]


def test_a_file_that_is_seen_while_it_is_written_is_a_command_once_it_is_whole(run_dir):
    client, commands = Commands(run_dir), driver(run_dir)
    sent = client.send(Action.pause)
    content = client._storage.read(f"commands/{sent.id}.json")
    for part in (b"", content[:20], content):
        client._storage.write(f"commands/{sent.id}.json", part)
        assert commands.pending() == ([sent] if part == content else [])


def test_files_that_are_being_written_are_no_commands(tmp_path):
    commands = driver(str(tmp_path))
    Commands(str(tmp_path)).send(Action.pause)
    (tmp_path / "control/commands/.x.json-partial").write_text("{")
    assert len(commands.pending()) == 1


def test_a_storage_that_fails_stops_nothing(tmp_path, capsys):
    commands = driver(str(tmp_path / "run"))

    def fail(folder):
        raise OSError("the network is gone")

    commands._storage.files = fail
    assert commands.pending() == []
    assert "can't be read: the network is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "options", "message"),
    [
        (Action.stop, {}, "trial=None is not allowed"),
        (Action.stop, {"trial": "t0001", "quantile": 0.5}, "one of trial=ID and quantile=NUMBER"),
        (Action.stop, {"quantile": 1.0}, "quantile=1.0 is not allowed"),
        (Action.clone, {"values": {"tuning.steps": 5}}, "for action=clone a trial's id"),
        (Action.extend, {}, "at least one key"),
    ],
)
def test_what_no_sweep_could_carry_out_is_not_sent(tmp_path, action, options, message):
    with pytest.raises(InputError, match=message):
        Commands(str(tmp_path)).send(action, **options)
    assert not list(tmp_path.iterdir())


CLIENT = """
import sys
from raytune_llm.sweep.control import Action, Commands
commands = Commands(sys.argv[1])
while True:
    print(commands.send(Action.stop, trial="t0001").id, flush=True)
"""
DRIVER = """
import sys
from raytune_llm.sweep.control import Commands
commands = Commands(sys.argv[1])
while True:
    for command in commands.pending():
        print(command.id, flush=True)
        commands.answer(command, done=True, text="carried out")
"""


def started(code, run_dir):
    return subprocess.Popen([sys.executable, "-c", code, run_dir], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def killed_after(process, lines):
    """SIGKILL once it has printed so many; all that it printed."""
    found = [process.stdout.readline().strip() for _ in range(lines)]
    process.kill()
    found += process.stdout.read().split()
    process.wait()
    return found


def test_killed_givers_and_drivers_lose_nothing_and_repeat_only_what_has_no_answer(tmp_path):
    """A driver that was killed may have carried out at most one command that it hadn't answered."""
    run_dir, given, taken = str(tmp_path / "run"), [], []
    for lines in (3, 11, 6):
        given += killed_after(started(CLIENT, run_dir), lines)
        taken.append(killed_after(started(DRIVER, run_dir), lines - 2))
    rest = [command.id for command in driver(run_dir).pending()]
    files = {file.stem for file in Path(run_dir, "control/commands").glob("[0-9]*.json")}
    answers = {file.stem for file in Path(run_dir, "control/answers").glob("[0-9]*.json")}
    assert set(given) <= files, "a command that was given is lost"
    assert set(rest) == files - answers and rest == sorted(rest)
    for earlier, later in zip(taken, [*taken[1:], rest], strict=True):
        repeated = set(earlier) & set(later)
        assert repeated <= {earlier[-1]} and not repeated & (answers if later is rest else set())
    assert all(json.loads(Path(run_dir, f"control/answers/{id}.json").read_text())["done"] for id in answers)
