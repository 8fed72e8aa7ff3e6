"""Records of eval and test that a model has seen."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_doctor import examine, found, numbered, splits, warnings

from raytune_llm.data.doctor import leakage
from raytune_llm.data.doctor.leakage import jaccard, spread, word_set
from raytune_llm.data.records import Chat, Message, Preference, Supervised


def worded(count: int, seed: int = 0, length: int = 12) -> list[Supervised]:
    generator = random.Random(seed)
    return [
        Supervised(" ".join(f"w{generator.randrange(5000)}" for _ in range(length)), f"answer {seed} {i}")
        for i in range(count)
    ]


def test_copies():
    held = [Supervised(f"ASK  {i}", "other") for i in range(5)] + numbered(40, 60)
    diagnosis = examine(splits(numbered(50), held))
    assert diagnosis.warnings == [
        "5 of 45 eval records also occur in train (leakage): eval scores are optimistic: leave these out of train"
    ]
    [leak] = found(diagnosis, "leakage")
    assert [(place.where, place.excerpt) for place in leak.places] == [
        ("data.eval, record 1", "ASK 0"),
        ("data.eval, record 2", "ASK 1"),
        ("data.eval, record 3", "ASK 2"),
    ]


def test_a_common_beginning_of_chats_is_no_leak():
    chats = [
        Chat(
            (
                Message("user", "Hi"),
                Message("assistant", "Hello"),
                Message("user", str(i)),
                Message("assistant", f"x{i}"),
            )
        )
        for i in range(80)
    ]
    assert warnings(chats[:40], chats[40:]) == []
    assert "1 of 41 eval records" in warnings(chats[:40], [*chats[40:], chats[7]])[0]


def test_one_prompt_for_all_is_no_leak():
    pairs = [Preference("Be funny.", f"good {i}", f"evil {i}") for i in range(80)]
    assert warnings(pairs[:40], pairs[40:]) == []
    [warning] = warnings(pairs[:40], [*pairs[40:], pairs[3]])
    assert warning.startswith("1 of 41 eval records also occur in train")


def test_eval_that_is_test():
    held = worded(40, seed=1)
    [warning] = warnings(worded(60), held, held)
    assert warning == (
        "40 of 40 test records also occur in eval (leakage): test confirms what was chosen on eval, and nothing else"
    )


def test_copies_with_a_dot_added():
    train = worded(200)
    dotted = [Supervised(f"{record.prompt}.", f"{record.completion}!") for record in train[:40]]
    [warning] = warnings(train, dotted)
    assert warning == (
        "40 of 40 eval records also occur in train (leakage): eval scores are optimistic: leave these out of train"
    )


def test_near_copies_name_their_twin():
    train, held = worded(300), worded(60, seed=1)
    held[7] = Supervised(train[123].prompt.replace(train[123].prompt.split()[0], "other"), "x")
    [near] = found(examine(splits(train, held)), "near_leakage")
    assert near.count == 1 and near.places[0].where == "data.eval, record 8"
    assert near.places[0].excerpt.endswith("≈ data.train, record 124")


def test_a_shared_instruction_makes_no_near_copies():
    instruction = "Classify the following long and winding text as this or that:"
    train = [Supervised(f"{instruction} {record.prompt}", "x y"[i % 2 * 2]) for i, record in enumerate(worded(200))]
    held = [Supervised(f"{instruction} {record.prompt}", "x y"[i % 2 * 2]) for i, record in enumerate(worded(40, 1))]
    short = [Supervised(f"{instruction} {i}", "x") for i in range(1000, 1040)]
    assert warnings(train, held) == [] and found(examine(splits(train, held + short)), "near_leakage") == []


def test_a_shared_system_turn_makes_no_near_copies():
    system = Message("system", "You are a helpful and honest assistant who answers each and every question in full.")

    def chats(count, seed):
        return [
            Chat((system, Message("user", one.prompt), Message("assistant", one.completion)))
            for one in worded(count, seed, length=5)
        ]

    train, held = chats(100, 0), chats(40, 1)
    assert warnings(train, held) == []
    copy = Chat((Message("system", "Other."), *train[5].messages[1:]))
    assert found(examine(splits(train, [*held, copy])), "near_leakage")[0].count == 1


def test_texts_without_spaces_are_compared_too():
    train = worded(20)
    text = "".join(chr(0x4E00 + 37 * i % 5000) for i in range(80))
    train.append(Supervised(text, "x"))
    [near] = found(examine(splits(train, [*worded(40, 1), Supervised(text[:-2] + "新文", "y")])), "near_leakage")
    assert near.count == 1


def test_texts_that_are_all_alike_end_in_time(monkeypatch):
    monkeypatch.setattr(leakage, "MOST_COMPARED", 300)
    words = [f"w{k}" for k in range(9)]
    alike = [
        Supervised(" ".join(random.Random(i).sample([*words, f"x{i}", f"y{i}", f"z{i}"], 12)), f"answer {i}")
        for i in range(400)
    ]
    train, held = [*alike[:300], Supervised(f"{alike[350].prompt} please", "?")], alike[300:]
    assert found(examine(splits(train, held)), "near_leakage") == [], "a limit is reached before the last"
    monkeypatch.setattr(leakage, "MOST_COMPARED", 10**9)
    assert found(examine(splits(train, held)), "near_leakage")[0].count == 1


def test_samples_are_named(monkeypatch):
    monkeypatch.setattr(leakage, "MOST_TRAIN", 50)
    monkeypatch.setattr(leakage, "MOST_HELD_OUT", 20)
    train = worded(200)
    held = [Supervised(f"{record.prompt} please", "other") for record in train[:40]]
    [near] = found(examine(splits(train, held)), "near_leakage")
    assert near.count == 10
    assert near.text.startswith("10 of 20 eval prompts (in a sample of 20 of eval and 50 of train) share 80%")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40), min_size=1))
def test_jaccard_is_of_the_words(first, second):
    found = jaccard(*(word_set(" ".join(f"word{i}" for i in one)) for one in (first, second)))
    assert found == len(first & second) / len(first | second)


def test_spread():
    assert list(spread(3, 5)) == [0, 1, 2] and list(spread(10, 4)) == [0, 2, 5, 7]


@pytest.mark.parametrize(("asked", "end"), [("capital of c{}", "?"), ("translate {}", "."), ("第{}句话", "。")])
def test_a_mark_at_the_end_makes_no_other_prompt(asked, end):
    train = [Supervised(asked.format(i), f"a {i}") for i in range(50)]
    copies = [Supervised(asked.format(i) + end, f"a {i}") for i in range(40)]
    [leak] = found(examine(splits(train, copies)), "leakage")
    assert leak.count == 40
    assert not found(examine(splits(train[:25], train[25:])), "leakage")
