"""A comparison's answers, judged: the win rate among its metrics, tables, files; what fails never costs the rest."""

import json

import numpy as np
import pytest
from fake_openai import serving
from judge_world import asked, by_reference, evaluation_of

from raytune_llm.data.records import Preference
from raytune_llm.errors import InputError
from raytune_llm.evaluation import report
from raytune_llm.evaluation.compare import compare
from raytune_llm.evaluation.metrics import mean
from raytune_llm.evaluation.report import Sample
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.config import load
from raytune_llm.jobs.further import check_further
from raytune_llm.jobs.judging import judged
from raytune_llm.jobs.stage_jobs import stage_job


def comparison(systems=("base", "tuned"), num_examples=24, metric="eval/loss"):
    """Systems of which the last answers right, the others mostly wrong."""
    generator = np.random.default_rng(0)
    measured = {name: {metric: mean(generator.random(num_examples), Better.lower)} for name in systems}
    answers = [
        Sample(f"q{i}", "right", {name: "right" if name == systems[-1] else f"{name} {i}" for name in systems})
        for i in range(num_examples)
    ]
    return ComparisonResult(compare(measured, num_draws=50, seed=0), [], measured=measured, answers=answers)


def judge(result, evaluation, folder, records=()):
    return judged(result, evaluation, records, home=str(folder), run_dir=f"{folder}/run", split="test", seed=0)


def test_the_win_rate_joins_the_metrics_and_the_tables_the_report(tmp_path, capsys):
    with serving(by_reference) as server:
        found = judge(comparison(), evaluation_of(server.url), tmp_path)
        assert server.num_requests == 48
        judge(comparison(), evaluation_of(server.url), tmp_path)
        assert server.num_requests == 48, "the second time nothing is asked"
    assert found.comparison.metrics["eval/win_rate"]["tuned"].value == 1.0
    assert found.comparison.metrics["eval/win_rate"]["base"].value == 0.5
    assert found.comparison.difference("eval/win_rate").significant
    assert list(found.comparison.metrics) == ["eval/loss", "eval/win_rate"]
    assert list(found.tables) == ["Judge", "Judge: how far to trust it"]
    page = report.markdown(found.comparison, "t", {}, metric="eval/loss", tables=found.tables)
    assert "## Judge\n" in page and "| wins | 24 |" in page
    content = json.loads(json.dumps(report.as_json(found.comparison, found.details), allow_nan=False))
    assert content["judge"]["matches"][0]["wins"] == 24
    lines = (tmp_path / "run" / "judge-test.jsonl").read_text().splitlines()
    assert len(lines) == 24 and json.loads(lines[0])["orders"] == ["A", "B"]
    printed = capsys.readouterr().out
    assert "judging 24 pairs of answers of the test set by m at http://127.0.0.1" in printed
    assert "expected: 48 requests (0 more cached), about " in printed
    assert "tuned against base: wins 24, ties 0, losses 0, win rate 1.000" in printed
    assert "0 requests (48 more cached), 0 prompt and 0 completion tokens" in printed


def test_a_champion_is_judged_too(tmp_path):
    with serving(by_reference) as server:
        found = judge(comparison(("base", "champion", "tuned")), evaluation_of(server.url), tmp_path)
    rates = {name: estimate.value for name, estimate in found.comparison.metrics["eval/win_rate"].items()}
    assert rates == {"base": 0.5, "champion": 0.5, "tuned": 1.0}
    assert found.tables["Judge"][0] == ["", "tuned against base", "tuned against champion", "champion against base"]


def test_a_part_of_the_prompts(tmp_path):
    with serving(by_reference) as server:
        found = judge(comparison(), evaluation_of(server.url, "evaluation.judge.rules.max_examples=10"), tmp_path)
        assert server.num_requests == 20
    assert found.measured["tuned"]["eval/win_rate"].statistics[:, 1].sum() == 10
    assert found.comparison.num_examples == 24


def test_a_judge_that_prefers_what_it_sees_first(tmp_path, capsys):
    with serving(lambda text: "A") as server:
        found = judge(comparison(), evaluation_of(server.url), tmp_path)
    assert found.comparison.metrics["eval/win_rate"]["tuned"].value == 0.5
    assert "! the judge is biased by order: " in capsys.readouterr().out
    assert "favours the answer shown first (24 of 24" in dict(found.tables["Judge: how far to trust it"])["warning 1"]


def test_people_s_choices_are_judged_without_reference(tmp_path):
    def answer(text):
        reference, prompt, first, _ = asked(text)
        if prompt == "p":
            assert reference is None
            return "A" if first.startswith("good") else "B"
        return by_reference(text)

    records = [Preference("p", f"good {i}", f"bad {i}") for i in range(5)]
    with serving(answer) as server:
        evaluation = evaluation_of(server.url, "evaluation.judge.rules.human_pairs=3")
        found = judge(comparison(), evaluation, tmp_path, records)
    trust = dict(found.tables["Judge: how far to trust it"])
    assert trust["agrees with people"].startswith("3 of 3 (100 %")
    assert found.tables["Judge"][1] == ["prompts", "24"]


def test_a_server_that_is_down_costs_the_judging_alone(tmp_path, capsys):
    evaluation = evaluation_of("http://127.0.0.1:1/v1", "evaluation.judge.max_retries=0")
    result = comparison()
    found = judge(result, evaluation, tmp_path)
    assert found.comparison == result.comparison
    assert "judging ended early: " in dict(found.tables["Judge: how far to trust it"])["warning 1"]
    assert found.details["judge"]["ended"] and "no response" in capsys.readouterr().out


def test_a_damaged_cache_costs_the_judging_alone(tmp_path):
    with serving(by_reference) as server:
        judge(comparison(), evaluation_of(server.url), tmp_path)
        next(tmp_path.rglob("judgements/*/*.jsonl")).write_text("{")
        found = judge(comparison(), evaluation_of(server.url), tmp_path)
    assert found.tables["Judge"][0] == ["judging ended"] and "is damaged" in found.tables["Judge"][1][0]
    assert list(found.comparison.metrics) == ["eval/loss"]


def test_a_win_rate_of_the_method_s_own_keeps_its_name(tmp_path):
    with serving(by_reference) as server:
        found = judge(comparison(metric="eval/win_rate"), evaluation_of(server.url), tmp_path)
    assert list(found.comparison.metrics) == ["eval/win_rate", "eval/external_win_rate"]


def test_nobody_judges_by_default(tmp_path):
    result = comparison()
    evaluation = load("train", ["model=demo", "data=demo_sarcasm"]).evaluation
    assert judge(result, evaluation, tmp_path) is result and list(tmp_path.iterdir()) == []


def test_what_cannot_be_judged_is_refused_early(monkeypatch):
    own = ["evaluation/judge=openai", "evaluation.judge.model=m"]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    job = load("train", ["model=demo", "data=demo_sarcasm", *own])
    with pytest.raises(InputError, match=r"evaluation\.judge\.api_key_env=OPENAI_API_KEY"):
        check_further(job.evaluation, job.method)
    reward = load(
        "train", ["model=demo", "data=demo_preference", "method=reward", *own, "evaluation.judge.api_key_env=null"]
    )
    with pytest.raises(InputError, match=r"evaluation/judge=openai is not allowed; allowed: none"):
        check_further(reward.evaluation, reward.method)


def test_earlier_stages_are_not_judged():
    own = ["evaluation/judge=openai", "evaluation.judge.model=m", "evaluation.harness.tasks=[arc_easy]"]
    job = load("train", ["model=demo", "data=demo_preference", "method=rlhf", *own])
    for stage in job.method.needs.stages:
        evaluation = stage_job(job, stage).evaluation
        assert evaluation.judge.open() is None and evaluation.harness.tasks == []
