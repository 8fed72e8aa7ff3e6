"""The journey of `make real`: on the embedded base, and on a real one where there is one."""

import socket

import pytest
import real_journey
from real_world import files_of

from raytune_llm.data.demo import path as demo_path
from raytune_llm.stores.registry import Registry

SMALL = [
    "name=real",
    "tuning.warmup_steps=0",
    "tuning.eval_every=8",
    "sweep.scheduler.grace_steps=8",
    "sweep.space.tuning.steps=[8]",
    "sweep.space.tuning.learning_rate_multiplier=[1.0,2.0]",
    "sweep.space.tuning.adapter_size=[4]",
    "evaluation.max_examples=16",
    "evaluation.max_new_tokens=8",
]
PARTS = ["check", "sweep", "compare and publish", "serve, after the parity check", "ask"]


def run(base, home, data):
    """The seconds of each part, and the champion's card."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [f"model.name_or_path={base}", *data]
    seconds = real_journey.journey(given, [*SMALL, f"home={home}", f"serve.port={port}"])
    return seconds, Registry(f"{home}/registry").resolve("real@champion").card


@pytest.mark.slow  # Ray, a sweep and an endpoint: half a minute
def test_the_journey_streams_the_answers_of_base_and_winner(ray_session, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAYTUNE_LLM_PUBLIC_DATA", raising=False)  # whose chats are too long for it
    seconds, card = run(demo_path("base"), tmp_path, files_of("chats", tmp_path, train=32, eval=16))
    assert list(seconds) == PARTS and all(took > 0 for took in seconds.values())
    printed = capsys.readouterr().out
    assert "parity check passed: real@1" in printed and card.config["tuning"]["steps"] == 8
    answers = printed.partition("serving ")[2].split("\n\n")[2:]
    assert len(answers) == real_journey.NUM_QUESTIONS
    assert all("\n  real@1 " in each and "\n  expected " in each for each in answers)


@pytest.mark.real
def test_the_journey_on_a_real_base(real_base, ray_session, tmp_path, capsys):
    _, card = run(real_base, tmp_path, files_of("labels", tmp_path, train=32, eval=16))
    printed = capsys.readouterr().out
    assert "packed: " in printed and "parity check passed: real@1" in printed
    assert card.intervals["eval/loss"][1] < 1.5 and card.metrics["eval/valid_answers"] == 1
