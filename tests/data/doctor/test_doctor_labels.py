"""Answers that are classes."""

from test_doctor import examine, found, numbered, splits, warnings

from raytune_llm.data.records import Chat, Message, Rationale, Supervised


def answered(*answers: str, start: int = 0) -> list[Supervised]:
    return [Supervised(f"question number {i} of all", answer) for i, answer in enumerate(answers, start)]


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
    chats = [Chat((Message("user", str(i)), Message("assistant", ("yes", "no")[i % 2]))) for i in range(40)]
    assert examine(splits(chats)).splits["train"].labels is None


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
    chats = [Chat((Message("user", str(i)), Message("assistant", "ok"))) for i in range(12)]
    assert [one.kind for one in examine(splits(chats)).findings] == ["constant_answer"]
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
