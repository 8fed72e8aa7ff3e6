import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from raytune_llm.evaluation.metrics import (
    Confusion,
    answers,
    bleu,
    bleu_statistics,
    exact_match,
    label_set,
    mean,
    ratio,
    token_f1,
)
from raytune_llm.evaluation.terms import Better

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    ",",
    "and",
    "then",
    "it",
    "went",
    "home",
    ".",
    "why",
    "?",
    "because",
    "!",
]


def sentences(number: int, seed: int, longest: int = 12) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(1, longest))) for _ in range(number)]


def corrupted(texts: list[str], seed: int, share: float) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choice(WORDS) if chooser.random() < share else w for w in t.split()) for t in texts]


REFERENCES = ["yes"] * 6 + ["no"] * 3 + ["maybe"]
ANSWERS = ["yes"] * 4 + ["no", "dunno"] + ["no", "no", "yes"] + ["yes"]
# yes: 4 hits, 6 answered, support 6; no: 2 hits, 3 answered, support 3; maybe: 0 hits, 0 answered, support 1
F1_YES, F1_NO = 2 * 4 / (6 + 6), 2 * 2 / (3 + 3)


def test_label_metrics_are_those_worked_out_by_hand():
    metrics = {name: metric.whole() for name, metric in answers(REFERENCES, ANSWERS).items()}
    assert metrics == pytest.approx(
        {
            "eval/accuracy": 0.6,
            "eval/f1_macro": (F1_YES + F1_NO + 0) / 3,
            "eval/f1/yes": F1_YES,
            "eval/f1/no": F1_NO,
            "eval/f1/maybe": 0.0,
            "eval/valid_answers": 0.9,
        }
    )


def test_confusion_counts_each_pair_and_the_answers_outside():
    found = Confusion.of(REFERENCES, ANSWERS, ["yes", "no", "maybe"])
    assert found.counts == ((4, 1, 0, 1), (1, 2, 0, 0), (1, 0, 0, 0))
    assert found.outside == 1
    yes, no, maybe = found.classes()
    assert (yes.precision, yes.recall, yes.f1, yes.support) == pytest.approx((4 / 6, 4 / 6, F1_YES, 6))
    assert (no.precision, no.recall, no.f1, no.support) == pytest.approx((2 / 3, 2 / 3, F1_NO, 3))
    assert (maybe.precision, maybe.recall, maybe.f1, maybe.support) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"references \['maybe'\] are not in labels"):
        Confusion.of(REFERENCES, ANSWERS, ["yes", "no"])


def test_label_tasks_are_few_strings_that_repeat():
    assert label_set(["a", "b ", "b", "a", " b", "b"]) == ["b", "a"]
    assert label_set([str(i % 20) for i in range(60)]) is not None
    assert label_set([str(i % 21) for i in range(210)]) is None
    assert label_set(["a", "b", "a", "b", "a"]) is None
    found = answers(["a", "b"], ["a", "c"])
    assert set(found) == {f"eval/{name}" for name in ("exact_match", "token_f1", "rougeL", "bleu", "answer_words")}


def test_white_space_around_an_answer_does_not_matter_but_letters_do():
    assert exact_match(["yes", "no", "No"], [" yes\n", "no", "no"]).tolist() == [1, 1, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("longest", [3, 12])
def test_bleu_of_a_resample_is_sacrebleus(share: float, longest: int):
    references = sentences(30, 1, longest)
    predictions = corrupted(references, 2, share)
    predictions[4] = ""
    metric = answers(references, predictions)["eval/bleu"]
    assert metric.whole() == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score, abs=1e-9)
    index = np.random.default_rng(0).integers(30, size=(20, 30))
    expected = [
        sacrebleu.corpus_bleu([predictions[i] for i in row], [[references[i] for i in row]]).score for row in index
    ]
    assert metric.at(index) == pytest.approx(expected, abs=1e-9)


def test_bleu_without_matches_answers_or_long_enough_answers_is_sacrebleus():
    for reference, answer in [
        ("a b c d e", "v w x y z"),
        ("a b c d e", ""),
        ("a b", "a b"),
        ("a b c d", "a x b y"),
        ("a b c d e f", "a b c x"),
    ]:
        ours = bleu(bleu_statistics([reference], [answer]).sum(0))
        assert float(ours) == pytest.approx(sacrebleu.corpus_bleu([answer], [[reference]]).score, abs=1e-9)


def test_rouge_is_rouge_scores_mean_without_stemming():
    references, predictions = ["he was running home", "two cats"], ["he runs home", "two cats"]
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score(r, p)["rougeL"].fmeasure for r, p in zip(references, predictions, strict=True)]
    assert answers(references, predictions)["eval/rougeL"].whole() == pytest.approx(np.mean(expected))
    assert expected == pytest.approx([2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4), 1.0])


def test_token_f1_is_that_of_the_words_both_have_as_squad_counts_them():
    pairs = {
        ("the Denver Broncos", "Denver Broncos!"): 1.0,
        ("a b b c", "b b b d"): 2 * 2 / (3 + 4),  # "a" is an article
        ("July 4, 1999", "in July 1999"): 2 * 2 / (3 + 3),
        ("x", "y"): 0.0,
        ("x", ""): 0.0,
        ("The", "..."): 1.0,
        ("theory", "ory"): 0.0,
    }
    references, predictions = zip(*pairs, strict=True)
    assert token_f1(references, predictions) == pytest.approx(list(pairs.values()))
    metric, index = answers(references, predictions)["eval/token_f1"], np.array([[0, 1, 1, 2], [3, 4, 5, 6]])
    assert metric.whole() == pytest.approx(np.mean(list(pairs.values())))
    assert metric.at(index) == pytest.approx(np.array(list(pairs.values()))[index].mean(-1))


def test_every_label_metric_on_an_index_is_the_metric_of_those_examples():
    index = np.random.default_rng(0).integers(10, size=(30, 10))
    counts = np.stack([np.bincount(row, minlength=10) for row in index]).astype(float)
    labels = ["yes", "no", "maybe"]
    metrics = answers(REFERENCES, ANSWERS)
    expected: dict[str, list[float]] = {name: [] for name in metrics}
    for row in index:
        found = Confusion.of([REFERENCES[i] for i in row], [ANSWERS[i] for i in row], labels)
        answered = [sum(counted[column] for counted in found.counts) for column in range(3)]
        occurring = [
            score.f1 for score, number in zip(found.classes(), answered, strict=True) if number or score.support
        ]
        expected["eval/accuracy"].append(np.mean([REFERENCES[i] == ANSWERS[i] for i in row]))
        expected["eval/f1_macro"].append(np.mean(occurring))
        expected["eval/valid_answers"].append(1 - found.outside / 10)
        for score in found.classes():
            expected[f"eval/f1/{score.label}"].append(score.f1)
    for name, metric in metrics.items():
        assert metric.at(index) == pytest.approx(np.array(expected[name])), name
        assert metric.repeated(counts) == pytest.approx(np.array(expected[name])), name


def test_ratio_weighs_examples_and_nothing_over_nothing_is_nan():
    assert ratio(np.array([2.0, 8.0]), np.array([1.0, 3.0]), Better.lower).whole() == 2.5
    assert np.isnan(ratio(np.zeros(2), np.zeros(2), Better.lower).whole())
    assert np.isnan(mean([1.0, np.nan], Better.lower).repeated(np.array([[2.0, 0.0]]))).all()


def test_answers_improve_upwards_and_their_length_in_no_direction():
    labels = answers(["yes", "no"] * 4, ["yes"] * 8)
    texts = answers([f"answer {i}" for i in range(4)], ["answer 1"] * 4)
    found = {name: metric.better for name, metric in (labels | texts).items()}
    assert found.pop("eval/answer_words") is Better.neither
    assert {"eval/f1/yes", "eval/bleu", "eval/valid_answers"} <= found.keys() and set(found.values()) == {Better.higher}


def test_unequal_or_empty_lists_are_refused():
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        answers(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 references"):
        answers([], [])
