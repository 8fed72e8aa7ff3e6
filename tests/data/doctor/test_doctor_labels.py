"""Answers that are classes."""

import re
import unicodedata

import pytest
from test_doctor import examine, found, numbered, splits, warnings

from raytune_llm.data.records import Chat, Message, Rationale, Supervised


def answered(*answers: str, start: int = 0) -> list[Supervised]:
    return [Supervised(f"question number {i} of all", answer) for i, answer in enumerate(answers, start)]


def chatted(*answers: str) -> list[Chat]:
    return [Chat((Message("user", f"ask {i}"), Message("assistant", answer))) for i, answer in enumerate(answers)]


def test_labels_and_their_skew():
    train = [Supervised(f"ask {i}", "yes" if i % 10 else "no") for i in range(100)]
    held = [Supervised(f"ask {i}", "yes" if i % 2 else "maybe") for i in range(100, 140)]
    diagnosis = examine(splits(train, held))
    assert diagnosis.splits["train"].labels == {"yes": 90, "no": 10}
    assert diagnosis.warnings == [
        "train labels are imbalanced ('no' 10.0%): accuracy is misleading; report the F1 of 'no'",
        "eval has labels that never occur in train: 'maybe'",
    ]
    assert "  yes      90   90.0%\n  no       10   10.0%" in diagnosis.text()
    assert "tokens" not in diagnosis.text(), "none were counted"


def test_free_text_is_no_label():
    assert examine(splits(numbered(50))).splits["train"].labels is None
    mixed = numbered(40, 200) + answered(*["yes", "no"] * 50)
    assert examine(splits(mixed)).splits["train"].labels is None and warnings(mixed) == []


def test_the_only_answers_of_chats_are_labels():
    answers = ["spam"] * 100 + ["Spam"] * 10 + ["ham"] * 90
    chats, plain = examine(splits(chatted(*answers))), examine(splits(answered(*answers)))
    assert chats.splits["train"].labels == plain.splits["train"].labels == {"spam": 110, "ham": 90}
    assert chats.warnings == plain.warnings
    assert chats.warnings == [
        "train: one label in several spellings: 'spam' = 'Spam': the model would have to guess which one counts; write "
        "the first of each"
    ]
    assert found(chats, "label_spellings")[0].places[0].where == "data.train, record 101"
    both = examine(splits(chatted(*answers), answered(*["ham", "eggs"] * 20)))
    assert both.splits["eval"].labels == {"ham": 20, "eggs": 20}
    assert [one.split for one in found(both, "unknown_labels")] == ["eval"]


def test_earlier_answers_that_are_not_learned_are_no_labels():
    example = (Message("system", "Say spam or ham."), Message("user", "Hi"), Message("assistant", "ham", learn=False))
    chats = [Chat((*example, *chat.messages)) for chat in chatted(*["spam", "ham"] * 20)]
    assert examine(splits(chats)).splits["train"].labels == {"spam": 20, "ham": 20}


def test_dialogues_and_calls_have_no_labels():
    first, second = chatted("yes", "no")
    call = Message("assistant", "", '[{"type": "function", "function": {"name": "f", "arguments": {}}}]')
    calls = Chat((first.messages[0], call))
    called = Chat((first.messages[0], call, Message("tool", "1"), first.messages[1]))
    for other in (Chat((*first.messages, *second.messages)), calls, called):
        assert examine(splits([other] * 40)).splits["train"].labels is None
        assert examine(splits([other, *chatted(*["yes", "no"] * 40)])).splits["train"].labels is None


def test_a_rare_label_does_not_hide_the_table():
    diagnosis = examine(splits(answered(*["yes"] * 100, *["no"] * 99, "mabye")))
    assert diagnosis.splits["train"].labels == {"yes": 100, "no": 99, "mabye": 1}
    [rare] = found(diagnosis, "rare_labels")
    assert diagnosis.warnings == [rare.text]
    assert rare.text == (
        "train: 1 label too rare to be learned or measured: 'mabye' (1): correct what is a slip, add records, or leave "
        "them out"
    )
    assert [(place.where, place.excerpt) for place in rare.places] == [("data.train, record 200", "mabye")]


def test_spellings_of_one_label_are_joined():
    twins = ["Yes"] * 50 + ["yes "] * 3 + ["Yes."] * 2 + ["Y\u200bes"] + ["no"] * 40
    diagnosis = examine(splits(answered(*twins)))
    assert diagnosis.splits["train"].labels == {"Yes": 56, "no": 40}
    [spellings] = found(diagnosis, "label_spellings")
    assert spellings.count == 6
    assert spellings.text == (
        "train: one label in several spellings: 'Yes' = 'yes ' = 'Yes.' = 'Y\\u200bes': the model would have to guess "
        "which one counts; write the first of each"
    )
    held = examine(splits(answered(*["Yes", "no"] * 30), answered(*["yes.", "no"] * 20, start=100)))
    assert found(held, "unknown_labels") == [], "another spelling is no other label"


@pytest.mark.parametrize(
    ("composed", "shown"),
    [
        ("voilà", "voila\\u0300"),
        ("мой", "мои\\u0306"),
        ("10 Å", "10 \\u212b"),
        ("각", "\u1100\\u1161\\u11a8"),
        ("한국어", "한\u1100\\u116e\\u11a8어"),
        ("ậ", "a\\u0323\\u0302"),
        ("á\u0317", "a\\u0317\\u0301"),
    ],
)
def test_spellings_that_print_alike_differ_to_the_eye(composed, shown):
    other = re.sub(r"\\u(....)", lambda found: chr(int(found[1], 16)), shown)
    assert other != composed and unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", composed)
    [one] = found(examine(splits(answered(*[composed] * 30, *[other] * 5, *["no"] * 30))), "label_spellings")
    assert f": '{composed}' = '{shown}': " in one.text and one.places[0].excerpt == shown
    [one] = found(examine(splits(answered(*[composed] * 5, *[other] * 30, *["no"] * 30))), "label_spellings")
    assert f": '{shown}' = '{composed}': " in one.text and one.places[0].excerpt == composed


def test_twins_of_long_labels_are_shortened():
    other = "voila\u0300 " * 100_000
    [one] = found(examine(splits(answered(*["voilà " * 100_000] * 30, *[other] * 5))), "label_spellings")
    assert "'voilà voilà voilà" in one.text and " = 'voila\\u0300 voila\\u0300 v" in one.text and len(one.text) < 400
    assert one.places[0].excerpt.startswith("voila\\u0300 ") and one.places[0].excerpt.endswith("…")


def test_one_spelling_is_advised_for_all_splits():
    train = answered(*["Yes"] * 50, *["yes"] * 3, *["no"] * 40)
    held = answered(*["yes"] * 12, *["Yes."] * 4, *["no"] * 15, start=100)
    test = answered(*["YES"] * 15, *["No"] * 15, start=200)
    found_in = {one.split: one for one in found(examine(splits(train, held, test)), "label_spellings")}
    assert {name: one.text for name, one in found_in.items()} == {
        "train": "train: one label in several spellings: 'Yes' = 'yes': the model would have to guess which one "
        "counts; write the first of each",
        "eval": "eval: one label in several spellings: 'Yes' = 'yes' = 'Yes.': of an answer the model's spelling alone "
        "is right; write the first of each",
        "test": "test: one label in several spellings: 'Yes' = 'YES'; 'no' = 'No': of an answer the model's spelling "
        "alone is right; write the first of each",
    }
    assert {name: one.count for name, one in found_in.items()} == {"train": 3, "eval": 16, "test": 30}
    assert found_in["eval"].places[0].where == "data.eval, record 1"


def test_a_label_that_train_lacks_has_one_spelling_in_eval_and_test():
    train = answered(*["a", "b"] * 20)
    held = answered(*["a"] * 20, *["New"] * 15, "new", start=100)
    test = answered(*["a"] * 20, *["new"] * 15, start=200)
    one, other = found(examine(splits(train, held, test)), "label_spellings")
    assert (one.split, one.count, other.split, other.count) == ("eval", 1, "test", 15)
    assert "'New' = 'new'" in one.text and "'New' = 'new'" in other.text


def test_a_constant_answer():
    train = answered(*["yes"] * 40)
    assert warnings(train, answered(*["yes"] * 40, start=50)) == [
        "train: all 40 answers are 'yes': there is nothing to tell apart, a model learns to say it whatever it is "
        "asked",
        "eval: all 40 answers are 'yes': a model that always says it is never wrong; scores mean nothing",
    ]
    for same in (chatted(*["ok"] * 12), [*chatted(*["ok"] * 6), *answered(*["ok"] * 6)]):
        assert [one.kind for one in examine(splits(same)).findings] == ["constant_answer"]
    dialogues = [Chat((*chat.messages, *chat.messages)) for chat in chatted(*["ok"] * 12)]
    assert [one.kind for one in examine(splits(dialogues)).findings] == ["constant_answer"]
    assert warnings([*dialogues, *answered("ok")]) == warnings([*answered("ok"), *dialogues]) != []
    assert warnings(answered("yes")) == [], "one record is not all"


def test_labels_without_a_value_are_no_labels():
    train = [Rationale(f"question {i}", None if i % 3 == 0 else ("a", "b")[i % 2], "so") for i in range(60)]
    assert examine(splits(train)).splits["train"].labels == {"b": 20, "a": 20}


def test_labels_are_shown_printably_and_shortened():
    train = answered(*["\x1b[31mred"] * 30, *["x" * 500] * 30)
    text = examine(splits(train)).text()
    assert "\x1b" not in text and "\\x1b[31mred" in text and "x" * 41 not in text


def test_very_many_answers_are_not_kept():
    assert examine(splits(answered(*(f"answer {i % 1500}" for i in range(3000))))).splits["train"].labels is None
