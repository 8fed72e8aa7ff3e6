"""The judge behind a URL: its config, its key, what it shows."""

import pytest
from fake_openai import serving
from judge_world import asked, evaluation_of, judge_at, judging, pair

from raytune_llm.errors import InputError
from raytune_llm.evaluation.judges.none import NoJudge
from raytune_llm.jobs.config import load

URL = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize("command", ["train", "sweep", "check", "evaluate"])
def test_a_judge_is_chosen_by_its_group(command):
    data = ["data=demo_sarcasm", *(["adapter=x"] if command == "evaluate" else ["model=demo"])]
    assert isinstance(load(command, data).evaluation.judge, NoJudge)
    job = load(command, [*data, "evaluation/judge=openai", "evaluation.judge.model=m"])
    assert job.evaluation.judge.model == "m" and job.evaluation.max_examples == 256
    with pytest.raises(InputError, match=r"evaluation\.judge\.model"):
        load(command, [*data, "evaluation/judge=openai"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base_url=ftp://x", "http:// or https:// with a host"),
        ("concurrent_requests=0", "≥ 1"),
        ("temperature=-1", "≥ 0 or null"),
        ("usd_per_million_prompt_tokens=-1", "≥ 0 or null"),
        ("requests_per_minute=0", "> 0 or null"),
        ("rules.attempts=0", "≥ 1"),
        ("rules.max_failures=-1", "≥ 0"),
        ("rules.max_examples=0", "≥ 1 or null"),
        ("rules.template='{prompt} {first}'", "a template of {prompt}, {first} and {second}"),
        ("rules.template='{prompt} {first} {second} {other}'", "other braces doubled"),
        ("rules.template='{prompt} {first} {second}'", "rules.reference=null"),
        ("rules.template='{prompt'", "double the braces"),
        ("rules.reference=right", "a template of {reference}, or null"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(override, message):
    with pytest.raises(InputError, match=r"evaluation\.judge") as error:
        judge_at(URL, override)
    assert message in str(error.value) and override.split("=")[0] in str(error.value)


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(tmp_path, monkeypatch):
    with serving(lambda text: "A") as server:
        evaluation = evaluation_of(server.url, "evaluation.judge.api_key_env=JUDGE_KEY")
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        with pytest.raises(InputError, match=r"evaluation\.judge\.api_key_env=JUDGE_KEY .* set it"):
            evaluation.judge.open()
        monkeypatch.setenv("JUDGE_KEY", "hidden-key")
        session = evaluation.judge.open()
        judging(session, [pair(0, "x", "y")], tmp_path).run()
    assert server.headers[0]["Authorization"] == "Bearer hidden-key"
    assert "hidden-key" not in repr(session) + repr(evaluation)
    assert all("hidden-key" not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_a_key_is_not_sent_unencrypted_to_another_machine():
    with pytest.raises(InputError, match="https:// when a key is sent to another machine"):
        evaluation_of("http://example.com/v1", "evaluation.judge.api_key_env=K")


def test_the_reference_is_shown_where_there_is_one_unless_it_is_switched_off():
    rules = judge_at(URL).rules
    (system, user) = rules.messages("p {x}", "r", "a {prompt}", "b")
    assert asked(user["content"]) == ("r", "p {x}", "a {prompt}", "b") and system["role"] == "system"
    assert asked(rules.messages("p", "", "a", "b")[1]["content"])[0] is None
    assert asked(judge_at(URL, "rules.reference=null").rules.messages("p", "r", "a", "b")[1]["content"])[0] is None


def test_another_rubric_and_no_temperature(tmp_path):
    with serving(lambda text: "tie") as server:
        session = judge_at(
            server.url,
            "rules.instruction='Which is kinder?'",
            "rules.template='{prompt}|{first}|{second}'",
            "rules.reference=null",
            "temperature=null",
            "max_tokens_name=max_completion_tokens",
        )
        judging(session, [pair(0, "x", "y")], tmp_path).run()
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Which is kinder?"}
    assert body["messages"][1]["content"] in ("question 0|x|y", "question 0|y|x")
    assert "temperature" not in body and body["max_completion_tokens"] == 256
