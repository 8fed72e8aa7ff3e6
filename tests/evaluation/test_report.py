import json
import math

import numpy as np
import pytest

from raytune_llm.evaluation.compare import Comparison, compare
from raytune_llm.evaluation.metrics import Confusion, mean
from raytune_llm.evaluation.report import Sample, as_json, contradiction, markdown, table
from raytune_llm.evaluation.terms import Better

LABELS = ["yes", "no"]
REFERENCES = ["yes"] * 20 + ["no"] * 10
ANSWERS = {"base": ["yes"] * 28 + ["dunno"] * 2, "tuned": ["yes"] * 18 + ["no"] * 12}


def comparison(systems: tuple[str, ...] = ("base", "tuned")) -> Comparison:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.2, size=(2, 30))
    found = {}
    for place, system in enumerate(systems):
        loss, words = 7.4 - 6.8 * min(place, 1) + noise[0], 60 - 58 * min(place, 1) + noise[1]
        found[system] = {
            "eval/loss": mean(loss, Better.lower),
            "eval/exact_match": mean(noise[1] > 0, Better.higher),
            "eval/answer_words": mean(words, Better.neither),
        }
    return compare(found, num_draws=100, seed=0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_terminal_table_is_aligned_and_says_what_the_differences_mean():
    header, rule, *rows, footnote = table(comparison()).split("\n")
    assert header.split() == ["metric", "better", "base", "tuned", "tuned", "-", "base"]
    assert [row.split()[0] for row in rows] == ["eval/loss", "eval/exact_match", "eval/answer_words"]
    assert [row.split()[1] for row in rows[:2]] == ["lower", "higher"]
    assert [row.split("]")[-1].strip() for row in rows] == ["better", "not significant", "differs"]
    start = header.index("tuned")
    for row in rows:
        assert row[start - 2 : start] == "  " and row[start] != " "
        assert rule[start - 2 : start + 1] == "  -"
    assert "-6.800 [-6.800, -6.800]" in rows[0]
    assert footnote.startswith("30 examples; in brackets 95 % intervals from 100 bootstrap draws")


def test_a_champion_gets_a_column_of_its_own():
    header = table(comparison(("base", "champion", "tuned"))).split("\n")[0]
    assert "tuned - base" in header and "tuned - champion" in header and "champion - base" not in header


def test_the_page_has_verdict_facts_tables_labels_and_samples():
    confusions = {system: Confusion.of(REFERENCES, given, LABELS) for system, given in ANSWERS.items()}
    samples = [Sample("Is it?\na | b <b> *c* [d](e) _f_ g_h", "yes", {"base": "", "tuned": "yes"})]
    page = markdown(
        comparison(),
        "sarcasm@3",
        {"base": "stories_260K", "steps": 100},
        metric="eval/loss",
        confusions=confusions,
        samples=samples,
    )
    lines = page.split("\n")
    assert lines[0] == "# sarcasm@3"
    assert "**Tuned beats base on eval/loss by 6.800 [6.800, 6.800].**" in lines
    assert "- base: stories_260K" in lines and "- steps: 100" in lines
    assert "| yes | 20 | 0.714 | 1.000 | 0.833 | 1.000 | 0.900 | 0.947 |" in lines
    assert "Answers that are none of the labels: base 2 of 30, tuned 0 of 30." in lines
    assert "| no | 8 | 0 | 2 |" in lines
    assert r"| Is it?<br>a \| b &lt;b&gt; \*c\* [d]\(e) \_f\_ g_h | yes |   | yes |" in lines
    for start in [i for i, line in enumerate(lines) if line.startswith("| --- ") or line.startswith("|---")]:
        assert len(cells(lines[start - 1])) == len(cells(lines[start + 1])) == lines[start].count("---")


def contradicted(loss, accuracy, valid):
    """Changes of three metrics from the base to the tuned model, on 30 examples."""
    noise = np.random.default_rng(1).normal(0, 0.1, size=(3, 30))
    changes = {"base": (0, 0, 0), "tuned": (loss, accuracy, valid)}
    directions = {"eval/loss": Better.lower, "eval/accuracy": Better.higher, "eval/valid_answers": Better.higher}
    systems = {
        system: {
            name: mean(1 + row * (1 if system == "base" else 0.5) + change, better)
            for (name, better), row, change in zip(directions.items(), noise, change, strict=True)
        }
        for system, change in changes.items()
    }
    return compare(systems, num_draws=100, seed=0)


def test_a_better_loss_with_worse_answers_is_called_a_contradiction_and_so_is_the_reverse():
    worse_answers = contradicted(-0.5, -0.5, 0)
    sentence = contradiction(worse_answers, "eval/loss")
    assert sentence.startswith("eval/loss and other measures disagree: tuned is worse than base on eval/accuracy (")
    page = markdown(worse_answers, "t", {}, metric="eval/loss").split("\n")
    assert f"**{sentence[0].upper()}{sentence[1:].replace('_', '_')}.**" in page
    assert "worse than base on eval/loss" in contradiction(contradicted(0.5, 0.5, 0), "eval/accuracy")


def test_nothing_contradicts_without_a_gain_or_by_metrics_of_another_kind():
    assert contradiction(contradicted(-0.5, 0.5, 0.5), "eval/loss") is None
    assert contradiction(contradicted(-0.5, 0, -0.5), "eval/loss") is None  # not one that says how good answers are
    assert contradiction(contradicted(0, -0.5, 0), "eval/loss") is None  # the verdict says already that it isn't better
    assert contradiction(contradicted(0.5, -0.5, 0), "eval/loss") is None


def test_long_samples_are_cut_and_say_so():
    samples = [Sample("a" * 1000, "b", {"base": "c", "tuned": "d"})]
    page = markdown(comparison(), "t", {}, metric="eval/loss", samples=samples)
    assert "a" * 600 + " …" in page and "a" * 601 not in page


def test_json_holds_every_number_and_no_nan():
    found = as_json(comparison())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["systems"] == ["base", "tuned"] and found["num_examples"] == 30
    assert found["directions"] == {"eval/loss": "lower", "eval/exact_match": "higher", "eval/answer_words": "neither"}
    assert set(found["metrics"]["eval/loss"]["tuned"]) == {"value", "low", "high"}
    assert found["differences"][0]["value"] == pytest.approx(-6.8) and found["differences"][0]["significant"] is True
    broken = compare({"base": {"eval/loss": mean([1.0, math.nan], Better.lower)}}, num_draws=5, seed=0)
    assert as_json(broken)["metrics"]["eval/loss"]["base"] == {"value": None, "low": None, "high": None}
