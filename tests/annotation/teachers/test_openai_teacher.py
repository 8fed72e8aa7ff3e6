"""The teacher behind a URL, against a real HTTP server: what is sent, retried, paced, counted and kept secret."""

import itertools
import subprocess
import sys
import time

import pytest
from fake_openai import serving

from raytune_llm.annotation.teachers.base import Request, Sampling, TeacherError
from raytune_llm.errors import InputError
from raytune_llm.jobs import config
from raytune_llm.models.openai_client import Pace, Secret

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
        responses = teacher.open("", Secret("hidden"), False)([Request("a", 0), Request("b", 1)], SAMPLING)
    found = [(response.text, response.num_prompt_tokens, response.num_completion_tokens) for response in responses]
    assert found == [("A", 100, 10), ("B", 100, 10)]
    assert responses[0].cost_usd == pytest.approx((100 * 2 + 10 * 10) / 1e6)
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


def complete(server, *overrides, credential=None):
    return teacher_at(server.url, *overrides).open("", credential, False)([Request("a", 0)], SAMPLING)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 0])
def test_busy_servers_and_lost_connections_are_retried(status, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with serving(lambda prompt: "ok", refuse=lambda number: status if number < 2 else None) as server:
        assert complete(server)[0].text == "ok"
        assert server.num_requests == 3


def test_the_pause_is_the_server_s_own_when_it_names_one():
    with serving(lambda prompt: "ok", refuse=lambda number: 429 if number < 1 else None, retry_after="1.2") as server:
        complete(server)
        assert server.times[1] - server.times[0] >= 1.2


def test_retries_end():
    with serving(lambda prompt: "ok", refuse=lambda number: 429) as server:
        message = rf"^big at {server.url}: HTTP 429 after 3 attempts: refused with 429$"
        with pytest.raises(TeacherError, match=message):
            complete(server, "teacher.max_retries=2")
        assert server.num_requests == 3


@pytest.mark.parametrize("status", [400, 401, 404])
def test_refusals_are_not_retried(status):
    with serving(lambda prompt: "ok", refuse=lambda number: status) as server:
        with pytest.raises(TeacherError, match=f"HTTP {status}: refused with {status}") as error:
            complete(server, credential=Secret("hidden"))
        assert server.num_requests == 1
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the response is not JSON"),
        (b"[]", "the response is not in OpenAI's format"),
        (b'{"choices": []}', "the response is not in OpenAI's format"),
        (b'{"error": "overloaded"}', "the response is not in OpenAI's format; it begins with: .*overloaded"),
    ],
)
def test_malformed_responses_are_named(body, message):
    with serving(lambda prompt: body) as server, pytest.raises(TeacherError, match=message):
        complete(server)


def test_a_response_without_usage_or_text_counts_nothing():
    with serving(lambda prompt: b'{"choices": [{"message": {"content": null}}]}') as server:
        (response,) = complete(server)
    assert (response.text, response.num_prompt_tokens, response.cost_usd) == ("", 0, 0.0)


def test_a_server_that_is_gone_is_named():
    teacher = teacher_at("http://127.0.0.1:9", "teacher.max_retries=1")
    with pytest.raises(TeacherError, match=r"big at http://127.0.0.1:9: no response after 2 attempts: ConnectError"):
        teacher.open("", None, False)([Request("a", 0)], SAMPLING)


def test_a_server_that_is_too_slow_is_given_up():
    with serving(lambda prompt: "ok", seconds=0.5) as server:
        with pytest.raises(TeacherError, match="no response: ReadTimeout"):
            complete(server, "teacher.max_retries=0", "teacher.timeout_seconds=0.1")
        time.sleep(0.5)  # until the server has noticed


def test_redirects_are_not_followed():
    with serving(lambda prompt: "ok", refuse=lambda number: 307) as server:
        with pytest.raises(TeacherError, match="HTTP 307"):
            complete(server, credential=Secret("hidden"))
        assert server.num_requests == 1


def test_no_key_of_the_environment_is_sent(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer of-the-environment")
    with serving(lambda prompt: "ok") as server:
        complete(server)
        complete(server, credential=Secret("own"))
        assert not [headers for headers in server.headers if "of-the-environment" in str(headers)]
        assert [headers.get("Authorization") for headers in server.headers] == [None, "Bearer own"]


def test_keys_are_not_logged(caplog):
    with caplog.at_level("DEBUG"), serving(lambda prompt: "ok") as server:
        complete(server, credential=Secret("hidden"))
    assert "hidden" not in caplog.text


def test_retries_keep_the_pace():
    with serving(lambda prompt: "ok", refuse=lambda number: 429 if number < 2 else None) as server:
        complete(server, "teacher.requests_per_minute=120")
        assert all(later - earlier >= 0.3 for earlier, later in itertools.pairwise(server.times))


def test_the_client_is_imported_where_requests_are_sent():
    code = "import sys, raytune_llm.annotation.teachers.openai; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


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
    monkeypatch.setenv("SOME_KEY", "very-secret\n")
    with pytest.raises(InputError, match=r"teacher\.api_key_env=SOME_KEY is not allowed") as error:
        teacher.credential()
    assert "very-secret" not in str(error.value)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(InputError, match=r"teacher\.api_key_env=SOME_KEY"):
        teacher.credential()


def test_keys_travel_encrypted():
    with pytest.raises(InputError, match="https:// when a key is sent to another machine"):
        teacher_at("http://example.org/v1", "teacher.api_key_env=SOME_KEY")
