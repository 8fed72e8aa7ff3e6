"""What is left of records shows, each kind once: unread keys, an index, thoughts, keys to ignore that none has."""

import pytest
from test_files import KINDS, data, problems, rows, write

from raytune_llm.data.dialects.leftovers import Leftovers
from raytune_llm.data.files import load
from raytune_llm.data.records import Chat, PlainText, Preference


def notes(location, *, kinds=KINDS, **changes) -> list[tuple[str, str]]:
    found = load(data(location, **changes), kinds, 0).findings
    assert {finding.severity.value for finding in found} <= {"note"}
    return [(finding.kind, finding.text) for finding in found]


def chat(answer: dict[str, object], i: int = 0) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", **answer}]}


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_of_pandas_is_named_in_plain_words(tmp_path, name):
    file = tmp_path / "a.csv"
    file.write_text(f"{name},prompt,completion\n" + "".join(f"{i},question {i},answer\n" for i in range(6)))
    text = "left out: the numbers of the rows, which pandas wrote as 'Unnamed: 0', of 6 records"
    assert notes(str(file)) == [("unused_keys", text)]


def test_an_index_that_was_written_twice(tmp_path):
    file = tmp_path / "a.csv"
    lines = "".join(f"{i},{i + 5},question {i},answer\n" for i in range(6))
    file.write_text(f",Unnamed: 0,prompt,completion\n{lines}")
    assert [text.split("'")[1] for _, text in notes(str(file))] == ["Unnamed: 0.1", "Unnamed: 0"]
    file.write_text(f"prompt,,completion\n{lines}")
    assert "the header has a column without a name; expected a name for each column" in problems(str(file))


def test_a_header_alone_is_no_empty_file(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\n")
    assert f"{tmp_path}/a.csv (data.train): has a header ('prompt', 'completion') and no rows below it\n" in problems(
        str(tmp_path / "a.csv")
    )


def test_a_key_without_a_name_shows(tmp_path):
    train = write(tmp_path / "a.jsonl", [{**row, "": 1} for row in rows(6)])
    assert notes(train) == [("unused_keys", "nothing reads the key '' of 6 records")]
    train = write(tmp_path / "b.jsonl", [{**row, f"key{i}": 1} for i, row in enumerate(rows(21))])
    assert notes(train)[0] == ("unused_keys", "nothing reads the key key0 of 1 record")
    assert notes(train)[-1] == ("unused_keys", "nothing reads 1 more key of fewer records")


def test_a_column_that_no_record_has_is_an_error(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"prompt": f"question {i}", "completion": "a"} for i in range(6)])
    assert "data.columns.prompt: no record has a key promt; did you mean prompt?" in problems(
        train, columns={"prompt": "promt"}
    )
    mixed = write(tmp_path / "b.jsonl", [*rows(6), *({"body": f"text {i}"} for i in range(3))])
    assert notes(mixed, kinds=(*KINDS, PlainText), columns={"text": "body"}) == []


THOUGHTS = {
    "reasoning_content": {"content": "yes", "reasoning_content": "Hm."},
    "thinking part": {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "yes"}]},
    "thought part": {"content": [{"text": "Hm.", "thought": True}, {"text": "yes"}]},
    "both": {"content": [{"text": "Hm.", "thought": True}, {"text": "yes"}], "reasoning": "Hm."},
}
NO_THOUGHTS = {
    "null": {"content": "yes", "reasoning_content": None},
    "empty": {"content": "yes", "reasoning_content": "", "thinking": []},
    "no thought": {"content": [{"text": "yes", "thought": False}]},
    "signature": {"content": [{"text": "yes", "thoughtSignature": "abc"}]},
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_are_not_left_out_silently(tmp_path, name):
    lines = [*(chat({"content": "no"}, i) for i in range(4)), chat(THOUGHTS[name], 4), chat(THOUGHTS[name], 5)]
    text = "left out: what the assistant thought (reasoning_content, parts with thought: true), in 2 records"
    assert notes(write(tmp_path / "a.jsonl", lines)) == [("thoughts", text)]
    [found] = load(data(str(tmp_path / "a.jsonl")), KINDS, 0).findings
    assert [place.where for place in found.places] == ["a.jsonl:5"]


def test_thoughts_of_preferences_and_of_gemini_count_too(tmp_path):
    answers = [{"role": "assistant", "content": word, "reasoning": "Hm."} for word in ("good", "bad")]
    pairs = [{"prompt": f"p {i}", "chosen": answers[:1], "rejected": answers[1:]} for i in range(5)]
    [(kind, text)] = notes(write(tmp_path / "a.jsonl", pairs), kinds=(Preference,))
    assert kind == "thoughts" and text.endswith("in 5 records")
    turns = [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "a", "thought": True}]}]
    turns[1]["parts"].append({"text": "b"})
    train = write(tmp_path / "b.jsonl", [{"contents": turns}] * 5)
    [(_, text)] = notes(train, kinds=(Chat,), eval=train)
    assert text.endswith("in 10 records")


@pytest.mark.parametrize("name", NO_THOUGHTS)
def test_what_holds_no_thought_is_not_counted(tmp_path, name):
    assert notes(write(tmp_path / "a.jsonl", [chat(NO_THOUGHTS[name], i) for i in range(5)])) == []


IGNORED = {
    "misspelt": (["wieght"], [("unknown_ignore", "data.ignore: no record has a key wieght; did you mean weight?")]),
    "other case": (["Weight"], [("unknown_ignore", "data.ignore: no record has a key Weight; did you mean weight?")]),
    "far": (["zzz"], [("unknown_ignore", "data.ignore: no record has a key zzz")]),
    "odd": (["\x1b["], [("unknown_ignore", "data.ignore: no record has a key '\\x1b['")]),
    "there": (["weight"], []),
    "deep": (["city"], []),
    "in the last record": (["rare"], []),
}


@pytest.mark.parametrize("name", IGNORED)
def test_keys_to_ignore_that_no_record_has(tmp_path, name):
    ignore, expected = IGNORED[name]
    call = {"function": {"name": "f", "arguments": {"city": "Rome"}}}
    lines = [chat({"content": "yes", "weight": 1, "tool_calls": [call]}, i) for i in range(6)]
    lines[-1]["rare"] = None
    assert notes(write(tmp_path / "a.jsonl", lines), ignore=ignore) == expected


def test_only_the_first_records_are_searched_for_what_was_meant():
    left = Leftovers(["wieght"])
    for _ in range(1000):
        left.see({"a": 1})
    left.see({"weight": 1})
    assert [found.text for found in left.findings()] == ["data.ignore: no record has a key wieght"]
    assert list(Leftovers(["a"]).findings()) == []


def test_an_answer_of_calls_alone_has_nothing_left_without_them(tmp_path):
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    train = write(tmp_path / "a.jsonl", [chat({"content": None, "tool_calls": calls}, i) for i in range(5)])
    found = "found nothing but tool_calls, which data.ignore leaves out"
    expected = "expected text; remove the record, or leave tool_calls in"
    assert f"a.jsonl:1: messages[1].content: {found}, {expected}\n" in problems(train, ignore=["tools", "tool_calls"])
