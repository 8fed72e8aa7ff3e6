"""The judging itself, against a real HTTP server: what is sent, kept, asked again, counted; how it ends."""

import itertools
import json

import pytest
from fake_openai import serving
from judge_world import asked, by_reference, judge_at, judging, pair

from raytune_llm.errors import InputError
from raytune_llm.evaluation.judging.cache import ReplyCache, key_of
from raytune_llm.evaluation.judging.pairs import Choice
from raytune_llm.models.openai_client import Completion

PAIRS = [pair(0, "right", "wrong"), pair(1, "wrong", "right"), pair(2, "wrong", "worse"), pair(3, "same", "same ")]


def test_both_orders_are_asked_and_identical_answers_are_not(tmp_path):
    with serving(by_reference) as server:
        found = judging(judge_at(server.url), PAIRS, tmp_path).run()
    assert [one.score for one in found.judged] == [1.0, 0.0, 0.5, 0.5]
    assert [one.asked for one in found.judged] == [True, True, True, False]
    shown = sorted(asked(body["messages"][1]["content"]) for body in server.bodies)
    assert shown == sorted(
        ("right", f"question {i}", *answers)
        for i, both in enumerate([("right", "wrong"), ("wrong", "right"), ("wrong", "worse")])
        for answers in (both, both[::-1])
    )
    first = server.bodies[0]
    assert first["messages"][0]["role"] == "system" and '"verdict"' in first["messages"][0]["content"]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0.0, 256)


def test_the_second_time_nothing_is_asked(tmp_path):
    with serving(by_reference) as server:
        session = judge_at(
            server.url, "usd_per_million_prompt_tokens=2", "usd_per_million_completion_tokens=10", "max_new_tokens=100"
        )
        first = judging(session, PAIRS, tmp_path)
        expected = first.estimate()
        assert (expected.num_requests, expected.num_cached, expected.num_completion_tokens) == (6, 0, 600)
        assert 6 * 100 < expected.num_prompt_tokens < 6 * 300 and expected.usd > 600 * 10 / 1e6
        found = first.run()
        assert (found.usage.num_requests, found.usage.num_cached) == (6, 0)
        assert (found.usage.num_prompt_tokens, found.usage.num_completion_tokens) == (600, 60)
        assert found.usage.usd == pytest.approx((600 * 2 + 60 * 10) / 1e6)
        again = judging(session, PAIRS, tmp_path)
        assert (again.estimate().num_requests, again.estimate().num_cached) == (0, 6)
        second = again.run()
        assert server.num_requests == 6
        assert second.judged == found.judged and (second.usage.num_requests, second.usage.num_cached) == (0, 6)
        assert second.usage.usd == 0
        judging(judge_at(server.url, "temperature=0.5"), PAIRS, tmp_path).run()
        assert server.num_requests == 12, "another judge has replies of its own"


def test_a_reply_that_cannot_be_read_is_asked_for_again(tmp_path):
    def answer(text):
        return "A" if "question 0" in text else "I can't say"

    with serving(answer) as server:
        session = judge_at(server.url, "rules.attempts=2", "rules.retry='A, B or tie!'")
        found = judging(session, [pair(0, "x", "y"), pair(1, "x", "y")], tmp_path).run()
        assert [one.score for one in found.judged] == [0.5, None]
        assert found.malformed == ["I can't say", "I can't say"] and found.failures == []
        assert server.num_requests == 6
        retried = [body["messages"] for body in server.bodies if len(body["messages"]) > 2]
        assert len(retried) == 2
        assert [turn["content"] for turn in retried[0][2:]] == ["I can't say", "A, B or tie!"]
        judging(session, [pair(0, "x", "y"), pair(1, "x", "y")], tmp_path).run()
        assert server.num_requests == 6, "what can't be read is kept, too"


def test_a_retry_that_can_be_read_counts(tmp_path):
    with serving(lambda text: next(replies)) as server:
        replies = itertools.chain(["hm", "hm", "tie"], itertools.repeat("B"))
        found = judging(judge_at(server.url, "concurrent_requests=1"), [pair(0, "x", "y")], tmp_path).run()
        assert found.judged[0].orders == (Choice.tie, Choice.second) and found.malformed == []
        assert server.num_requests == 4


def test_failures_are_left_without_verdict(tmp_path):
    with serving(by_reference, refuse=lambda number: 400 if number == 0 else None) as server:
        session = judge_at(server.url, "max_retries=0", "concurrent_requests=1")
        found = judging(session, PAIRS, tmp_path).run()
    assert [one.score for one in found.judged] == [None, 0.0, 0.5, 0.5]
    assert found.failures == [f"m at {server.url}: HTTP 400: refused with 400"] and found.ended is None


@pytest.mark.parametrize("status", [429, 503, 0])
def test_the_client_retries_by_itself(tmp_path, status, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with serving(by_reference, refuse=lambda number: status if number < 2 else None) as server:
        found = judging(judge_at(server.url, "concurrent_requests=1"), PAIRS[:1], tmp_path).run()
        assert found.judged[0].score == 1.0 and found.failures == [] and server.num_requests == 4


def test_too_many_failures_end_the_judging_and_lose_nothing(tmp_path):
    pairs = [pair(i, "right", "wrong") for i in range(20)]
    with serving(by_reference, refuse=lambda number: 500 if number >= 10 else None) as server:
        session = judge_at(server.url, "max_retries=0", "concurrent_requests=1", "rules.max_failures=3")
        found = judging(session, pairs, tmp_path).run()
        assert server.num_requests < 40 and len(found.failures) >= 4
        assert found.ended.startswith(f"{len(found.failures)} requests failed, more than evaluation.judge.rules.max_fa")
        assert "HTTP 500: refused with 500" in found.ended
        assert [one.score for one in found.judged[:5]] == [1.0] * 5 and found.judged[-1].score is None
    with serving(by_reference) as server:
        session = judge_at(server.url)
        kept = ReplyCache(str(tmp_path), {**session.identity, "base_url": found.failures[0].split()[2].rstrip(":")})
        assert len(kept.read()) == 10


def test_a_server_that_is_too_slow_fails(tmp_path, monkeypatch):
    with serving(by_reference, seconds=1.0) as server:
        session = judge_at(server.url, "max_retries=0", "timeout_seconds=0.2", "rules.max_failures=0")
        found = judging(session, PAIRS[:1], tmp_path).run()
    assert found.judged[0].score is None and "no response: ReadTimeout" in found.ended.replace("APITimeout", "")


def test_a_damaged_file_of_the_cache_is_named(tmp_path):
    with serving(by_reference) as server:
        session = judge_at(server.url)
        judging(session, PAIRS, tmp_path).run()
        (file,) = tmp_path.rglob("*.jsonl")
        file.write_text('{"key": "x"')
        with pytest.raises(InputError, match=rf"{file.name} is damaged .*remove the file"):
            judging(session, PAIRS, tmp_path)


def test_replies_are_kept_by_content(tmp_path):
    cache = ReplyCache(str(tmp_path), {"model": "m"})
    turns = [{"role": "user", "content": "\ud800 é\u2028"}]
    cache.add({key_of(turns): Completion("a\u2028b", 1, 2)})
    assert ReplyCache(str(tmp_path), {"model": "m"}).read() == {key_of(turns): Completion("a\u2028b", 1, 2)}
    assert ReplyCache(str(tmp_path), {"model": "n"}).read() == {}
    assert json.loads((tmp_path / "judgements" / cache.root[-16:] / "judge.json").read_text()) == {"model": "m"}
    assert key_of(turns) == key_of([{"content": "\ud800 é\u2028", "role": "user"}]) != key_of([])
