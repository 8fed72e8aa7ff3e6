"""The teacher behind a URL, against a real HTTP server: what is sent, tried again, paced, counted and kept secret."""

import time

import pytest
from fake_openai import serving

from raytune_llm.annotation.teachers.base import Request, Sampling, Secret, TeacherError
from raytune_llm.annotation.teachers.openai import Pace
from raytune_llm.errors import InputError
from raytune_llm.jobs import config

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=20, stop=("\n\n",), seed=5)


def teacher_at(url, *overrides):
    job = config.load(
        "annotate",
        [
            "teacher=openai",
            "teacher.model=big",
            f"teacher.base_url={url}",
            "teacher.api_key_env=null",
            "data.train=x.jsonl",
            *overrides,
        ],
    )
    return job.teacher


def test_what_is_sent_and_what_it_costs():
    with serving(lambda prompt: prompt.upper()) as server:
        teacher = teacher_at(
            server.url, "teacher.usd_per_million_prompt_tokens=2", "teacher.usd_per_million_completion_tokens=10"
        )
        said = teacher.open("", Secret("hidden"), False)([Request("a", 0), Request("b", 1)], SAMPLING)
    assert [(s.text, s.num_prompt_tokens, s.num_completion_tokens) for s in said] == [("A", 100, 10), ("B", 100, 10)]
    assert said[0].cost_usd == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    sent = sorted(server.bodies, key=lambda body: body["seed"])
    assert sent[1] == {
        "model": "big",
        "messages": [{"role": "user", "content": "b"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 6,
        "max_tokens": 20,
        "stop": ["\n\n"],
    }
    assert server.headers[0]["Authorization"] == "Bearer hidden"


def test_plain_completions_and_other_names_for_the_longest_answer():
    with serving(lambda prompt: "ok") as server:
        teacher = teacher_at(server.url, "teacher.chat=false", "teacher.max_tokens_name=max_completion_tokens")
        teacher.open("", None, False)([Request("a", 0)], SAMPLING)
    assert server.bodies[0]["prompt"] == "a" and server.bodies[0]["max_completion_tokens"] == 20
    assert "Authorization" not in server.headers[0]


def test_busy_servers_are_asked_again_and_refusals_are_not():
    with serving(lambda prompt: "ok", refuse=lambda number: 429 if number < 2 else None) as server:
        teacher_at(server.url).open("", None, False)([Request("a", 0)], SAMPLING)
        assert server.num_requests == 3
    with serving(lambda prompt: "ok", refuse=lambda number: 401) as server:
        with pytest.raises(TeacherError, match="refuses: 401: refused with 401") as error:
            teacher_at(server.url).open("", Secret("hidden"), False)([Request("a", 0)], SAMPLING)
        assert server.num_requests == 1
        assert "hidden" not in str(error.value)


def test_a_server_that_is_gone_is_named():
    teacher = teacher_at("http://127.0.0.1:9", "teacher.max_retries=1")
    with pytest.raises(
        TeacherError, match=r"big at http://127.0.0.1:9 gave no answer in 2 attempts; the last: URLError"
    ):
        teacher.open("", None, False)([Request("a", 0)], SAMPLING)


def test_redirects_are_not_followed():
    with serving(lambda prompt: "ok", refuse=lambda number: 307) as server:
        with pytest.raises(TeacherError, match="refuses: 307"):
            teacher_at(server.url).open("", Secret("hidden"), False)([Request("a", 0)], SAMPLING)
        assert server.num_requests == 1


def test_pace_keeps_requests_apart():
    pace, started = Pace(0.02), time.monotonic()
    for _ in range(4):
        pace.wait()
    assert time.monotonic() - started >= 0.06


def test_keys_come_from_the_environment_and_are_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    teacher = teacher_at("https://example.org/v1", "teacher.api_key_env=SOME_KEY")
    assert teacher.credential().value == "very-secret"
    assert "very-secret" not in repr(teacher.credential()) and "very-secret" not in repr(teacher)
    assert "SOME_KEY" not in str(teacher.identity(""))
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ValueError, match=r"teacher\.api_key_env=SOME_KEY"):
        teacher.credential()


def test_keys_travel_encrypted():
    with pytest.raises(InputError, match="https:// when a key is sent to another machine"):
        teacher_at("http://example.org/v1", "teacher.api_key_env=SOME_KEY")
