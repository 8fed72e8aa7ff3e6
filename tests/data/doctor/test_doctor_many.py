"""Many records: the doctor says the same whether one process looks through them or several, wherever blocks end."""

import json
import os
import random
import signal
from dataclasses import asdict

import pytest
from test_doctor import diagnosed, splits, words

from raytune_llm.data import progress
from raytune_llm.data.doctor import checks, labels, view
from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.encoding import workers
from raytune_llm.data.files import Splits
from raytune_llm.data.origins import Origins
from raytune_llm.data.reading.sources import Source
from raytune_llm.data.records import Chat, Message, PlainText, Preference, Prompt, Rationale, Supervised
from raytune_llm.data.tables.record_table import RecordTable

CARD, KEY = "4111 1111 1111 1111", "AKIA" + "ABCD" * 4
BAD_TEXTS = {
    "control_characters": "a\x00b",
    "invisible_characters": "zero\u200bwidth",
    "replacement_character": "caf\ufffd",
    "html_entities": "a &amp; b",
    "high_control_characters": "it\x92s",
    "mojibake": "cafÃ© crÃ¨me",
    "control_tokens": "the end </s> <unk> <unk>",
    "secrets": f"my key {KEY}",
    "personal_data": f"mail a@b.org, card {CARD}",
}
LONG = " ".join(str(i) for i in range(90))


def turns(*texts, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))


def supervised(generator):
    records = [Supervised(f"ask {generator.random()}", f"say {generator.random()}") for _ in range(60)]
    bad = [Supervised(f"{text} {generator.random()}", "1 2") for text in BAD_TEXTS.values()]
    bad += [Supervised(f"Tell the number, please: {LONG} {i}", "3") for i in range(5)]
    bad += [Supervised("padded", " answer "), Supervised("same", "1"), Supervised("same", "2"), Supervised("same", "2")]
    return records + 2 * bad


def chats(generator):
    records = [Chat(turns(f"{generator.random()}", "no")) for _ in range(60)]
    bad = [Chat(turns(f"{text} {generator.random()}", "yes")) for text in BAD_TEXTS.values()]
    bad += [Chat(turns("1", "2", f"and then {i}?")) for i in range(4)]
    bad += [Chat(turns(LONG, "no")), Chat(turns("1", "2", LONG, LONG)), Chat(turns("Привет " * 90, "Да"))]
    return records + 2 * bad


def instructed(generator):
    """Some lose the instruction, and what they ask for."""
    records = [Supervised(f"Tell me the number: {generator.random()}", "1") for _ in range(60)]
    return records + [Supervised(f"Tell me the number: {LONG} {i}", "Tell me") for i in range(9)]


def labelled(generator):
    labels = ["yes"] * 40 + ["no"] * 9 + ["No"] * 3 + ["NO."] * 2 + ["yes "] * 3 + ["maybe"] + ["nay"] * 2
    return [Supervised(f"Is it {generator.random()}?", label) for label in labels]


def labelled_chats(generator):
    return [Chat(turns(record.prompt, record.completion)) for record in labelled(generator)]


def preferences(generator):
    records = [Preference(f"ask {generator.random()}", "1 2 3", "4", int(generator.random() < 0.1)) for _ in range(60)]
    bad = [Preference(f"ask {text}", "yes", "no", 0) for text in BAD_TEXTS.values()]
    bad += [Preference("spaces", "1 2", "1  2"), Preference("cut", f"{LONG} 1", f"{LONG} 2")]
    bad += [Preference("both", "1", "2", 0), Preference("both", "2", "1", 1), Preference("both", "2", "1", None)]
    bad += [Preference(turns("1"), turns("2", first="assistant"), turns("3", first="assistant"))]
    return records + 2 * bad


def rationales(generator):
    records = [Rationale(f"ask {generator.random()}", generator.choice(["a", "b"]), "since") for _ in range(60)]
    bad = [Rationale("no label", None, "since"), Rationale("no reason", "a", None), Rationale("?", None, None)]
    return records + bad


def prompts(generator):
    return [Prompt(f"ask {generator.random()} {text}") for text in (*BAD_TEXTS.values(), *map(str, range(50)))]


def gone(generator):
    """Prompts of which next to nothing is kept."""
    return [Supervised(f"{generator.random()} {LONG * 8}", "yes") for _ in range(50)] + supervised(generator)[:20]


def languages(generator):
    texts = [
        "The delivery was three days late.",
        "Die Lieferung kam drei Tage zu spät an.",
        "今晩、予約したいのですが。",
    ]
    return [Supervised(generator.choice(texts), f"{generator.random()}") for _ in range(80)]


def plain_texts(generator):
    return [PlainText(record.prompt) for record in supervised(generator)]


def calls(generator):
    """Calls of tools that aren't there, and that no result answers."""
    asked = Message("user", f"{generator.random()}")
    call = Message("assistant", "", '[{"type": "function", "function": {"name": "f", "arguments": {}}}]')
    other = Message("user", "f", tools='[{"type": "function", "function": {"name": "g"}}]')
    return chats(generator) + 3 * [Chat((asked, call, asked, Message("assistant", "1"))), Chat((other, call))]


KINDS = {
    supervised: {*BAD_TEXTS, "prompt_beginning_lost", "padded_answer", "duplicates", "conflicts", "leakage"},
    chats: {*BAD_TEXTS, "unanswered_turn", "answers_cut", "dropped", "duplicates"},
    instructed: {"prompt_beginning_lost", "answer_out_of_context"},
    labelled: {"label_spellings", "rare_labels", "padded_answer", "label_skew"},
    labelled_chats: {"label_spellings", "rare_labels", "label_skew"},
    preferences: {
        *BAD_TEXTS,
        "equal_pairs",
        "equal_after_cutting",
        "length_bias",
        "choice_balance",
        "duplicates",
        "conflicts",
    },
    rationales: {"no_label", "no_rationale"},
    prompts: {"secrets", "personal_data"},
    gone: {"prompts_gone"},
    languages: set(),
    plain_texts: {*BAD_TEXTS, "answers_cut", "duplicates"},
    calls: {"calls_without_tools", "undeclared_calls", "unanswered_calls"},
}
"""Records of each kind, and some of what the doctor finds in them."""


def in_files(train, evaluation):
    """Splits that were read from three files."""
    given = {}
    for name, records in (("train", train), ("eval", evaluation)):
        given[name] = Origins()
        for file in range(3):
            given[name].begin(Source(f"{name}{file}.jsonl"))
            for line in range(file, len(records), 3):
                given[name].add(line)
    return Splits(RecordTable.of(train), RecordTable.of(evaluation), [], {}, False, given)


def shuffled(kind, seed):
    generator = random.Random(seed)
    records = kind(generator)
    generator.shuffle(records)
    return in_files(records, generator.sample(records, 20) + kind(generator)[:20])


def diagnosis_of(given, kind):
    if kind in (rationales, prompts, calls):
        return examine(given)
    return diagnosed(given, words())


def in_blocks(monkeypatch, size, num_workers=1):
    monkeypatch.setattr(checks, "MANY_RECORDS", 1)
    monkeypatch.setattr(checks, "BLOCK_RECORDS", size)
    monkeypatch.setattr(checks, "num_cpus", lambda: num_workers)


@pytest.mark.parametrize("sample", [30, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing(kind, sample, monkeypatch):
    monkeypatch.setattr(view, "SAMPLE", sample)
    for seed in range(6):
        given = shuffled(kind, seed)
        with monkeypatch.context() as patch:
            whole = diagnosis_of(given, kind)
            in_blocks(patch, random.Random(seed).choice([1, 2, 7, 16, 33]))
            parts = diagnosis_of(given, kind)
        assert parts == whole and parts.text() == whole.text()
        assert json.dumps(asdict(parts), default=str) == json.dumps(asdict(whole), default=str), "orders too"
        expected = KINDS[kind] if sample > len(given.train) else set()
        assert kind is not languages or len(whole.splits["train"].languages) >= 2
        assert expected <= {finding.kind for finding in whole.findings}


@pytest.mark.parametrize("kind", [supervised, labelled, preferences])
def test_processes_change_nothing(kind, monkeypatch, capfd):
    given = shuffled(kind, 0)
    whole = diagnosis_of(given, kind)
    in_blocks(monkeypatch, 16, num_workers=2)
    assert diagnosis_of(given, kind) == whole
    assert capfd.readouterr() == ("", ""), "a process failed"


def test_lists_of_records(monkeypatch):
    """Data that were not read from files, of several kinds, without and with tokens."""
    given = splits(supervised(random.Random(0)), chats(random.Random(1)))
    whole, encoded = examine(given), diagnosed(given, words(20))
    in_blocks(monkeypatch, 7)
    assert examine(given) == whole and diagnosed(given, words(20)) == encoded


def test_a_lost_process_costs_speed_only(monkeypatch, capfd):
    given = shuffled(supervised, 0)
    whole = diagnosis_of(given, supervised)
    in_blocks(monkeypatch, 4, num_workers=2)
    run, pids = workers.Worker.run, []

    def kill_first(worker, batch):
        if not pids:
            pids.append(worker._process.pid)
            os.kill(worker._process.pid, signal.SIGKILL)
        return run(worker, batch)

    monkeypatch.setattr(workers.Worker, "run", kill_first)
    assert diagnosis_of(given, supervised) == whole
    assert "a process that works on the records was lost" in capfd.readouterr().out


def test_an_error_is_raised_here(monkeypatch):
    """What a check can't take fails as it does in one process."""
    given = splits([*supervised(random.Random(0)), "no record"])
    in_blocks(monkeypatch, 16, num_workers=2)
    with pytest.raises(AttributeError, match="'str' object has no attribute 'prompt'"):
        examine(given)


def test_progress_of_a_long_pass(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(progress, "SHARE_BETWEEN_LINES", 0)
    in_blocks(monkeypatch, 64)
    records = supervised(random.Random(0))
    examine(splits(records))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"examining data.train: 64 of {len(records)} records"]


def test_many_different_answers_are_no_labels(monkeypatch):
    """However they are spread over blocks."""
    monkeypatch.setattr(labels, "MOST_ANSWERS", 20)
    common = [Supervised(f"ask {i}", f"label {i % 2}") for i in range(1000)]
    rare = [Supervised(f"what is {i}?", f"{i}") for i in range(18)]
    for more, is_table in ((rare, True), ([*rare, Supervised("one", "more")], False)):
        records = [*more[:9], *common, *more[9:]]
        tables = [examine(splits(records)).splits["train"].labels]
        for size in (1, 10, 500, 5000):
            with monkeypatch.context() as patch:
                in_blocks(patch, size)
                tables.append(examine(splits(records)).splits["train"].labels)
        assert all(table == tables[0] for table in tables) and (tables[0] is not None) is is_table


def test_a_dialogue_in_one_block_ends_the_labels_of_all(monkeypatch):
    records = [Chat(turns(f"ask {i}", f"label {i % 2}")) for i in range(40)]
    for place in (0, 20, 40):
        given = splits([*records[:place], Chat(turns("1", "label 1", "2", "label 1")), *records[place:]])
        for size in (1, 10, 500):
            with monkeypatch.context() as patch:
                in_blocks(patch, size)
                assert examine(given).splits["train"].labels is None
    in_blocks(monkeypatch, 10)
    assert examine(splits(records)).splits["train"].labels == {"label 0": 20, "label 1": 20}
