"""Calls without tools, of undeclared functions, without results, and results without calls."""

import json

import pytest
from test_files import data, write

from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.files import load
from raytune_llm.data.records import Chat, Preference, Prompt

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]


def call(name: str = "weather", identity: str | None = "c1") -> dict[str, object]:
    return {"function": {"name": name, "arguments": {}}} | ({} if identity is None else {"id": identity})


def asking(*calls: dict[str, object]) -> dict[str, object]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def result(identity: str | None = "c1") -> dict[str, object]:
    return {"role": "tool", "content": "dry"} | ({} if identity is None else {"tool_call_id": identity})


USER, ANSWER = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}
CHATS = {
    "sound": (TOOLS, [USER, asking(call()), result(), ANSWER], {}),
    "two calls": (TOOLS, [USER, asking(call(), call("time", "c2")), result("c2"), result(), ANSWER], {}),
    "no ids": (TOOLS, [USER, asking(call(identity=None)), result(None), ANSWER], {}),
    "ids of results alone": (TOOLS, [USER, asking(call(identity=None)), result("x"), ANSWER], {}),
    "ids of calls alone": (TOOLS, [USER, asking(call()), result(None), ANSWER], {}),
    "last": (TOOLS, [USER, asking(call())], {}),
    "no calls": (TOOLS, [USER, ANSWER], {}),
    "text": (None, [USER, ANSWER, {"role": "tool", "content": "dry"}, ANSWER], {}),
    "no tools": (
        None,
        [USER, asking(call()), result(), ANSWER],
        {
            "calls_without_tools": "has calls of tools, but no tools, so that the model learns to call functions "
            "that it doesn't know: add tools to the record"
        },
    ),
    "undeclared": (
        TOOLS,
        [USER, asking(call("wether")), result(), ANSWER],
        {
            "undeclared_calls": "has a call of a function that its tools don't declare: add it to them, or correct the "
            "name"
        },
    ),
    "unknown": (
        TOOLS,
        [USER, asking(call()), result(), result("c2"), ANSWER],
        {
            "unknown_results": "has a tool's result whose tool_call_id answers no call of the turn before: correct the "
            "id"
        },
    ),
    "unanswered": (
        TOOLS,
        [USER, asking(call()), ANSWER],
        {"unanswered_calls": "has a call that no tool turn answers, though turns follow it: add its result"},
    ),
    "one of two": (
        TOOLS,
        [USER, asking(call(), call("time", "c2")), result("c2")],
        {"unanswered_calls": "has a call that no tool turn answers, though turns follow it: add its result"},
    ),
    "misspelt id": (
        TOOLS,
        [USER, asking(call()), result("c2"), ANSWER],
        {
            "unknown_results": "has a tool's result whose tool_call_id answers no call of the turn before: correct the "
            "id",
            "unanswered_calls": "has a call that no tool turn answers, though turns follow it: add its result",
        },
    ),
}
KINDS = ("calls_without_tools", "undeclared_calls", "unknown_results", "unanswered_calls")


def findings(path, lines, kind=Chat):
    loaded = load(data(write(path, lines), eval=write(path.parent / "eval.jsonl", lines)), (kind,), 0)
    return [found for found in examine(loaded).findings if found.kind in KINDS and found.split == "train"]


@pytest.mark.parametrize("name", CHATS)
def test_what_does_not_fit_in_calls_and_results(tmp_path, name):
    tools, turns, expected = CHATS[name]
    record = {"messages": turns} | ({} if tools is None else {"tools": tools})
    sound = {"messages": CHATS["sound"][1], "tools": TOOLS}
    found = findings(tmp_path / "a.jsonl", [sound, record])
    assert {one.kind: one.text for one in found} == {kind: f"train: 1 record {text}" for kind, text in expected.items()}
    assert all(one.count == 1 and one.severity.value == "warning" for one in found)
    assert all(one.places[0].where == "a.jsonl:2" for one in found)


def test_places_name_the_function_or_the_id(tmp_path):
    record = {"messages": CHATS["misspelt id"][1], "tools": TOOLS}
    found = findings(tmp_path / "a.jsonl", [record, record])
    assert [[place.excerpt for place in one.places] for one in found] == [["c2", "c2"], ["weather", "weather"]]
    assert found[0].text.startswith("train: 2 records have a tool's result")


def test_preferences_and_prompts_have_tools_too(tmp_path):
    answers = {"chosen": [asking(call("other"))], "rejected": [ANSWER]}
    pair = {"prompt": [USER], **answers, "tools": TOOLS}
    [found] = findings(tmp_path / "a.jsonl", [pair], Preference)
    assert (found.kind, found.count) == ("undeclared_calls", 1)
    asked = [{"prompt": [USER, asking(call()), result()], "tools": tools} for tools in (TOOLS, TOOLS[1:])]
    [found] = findings(tmp_path / "b.jsonl", asked, Prompt)
    assert (found.kind, found.count, found.places[0].where) == ("undeclared_calls", 1, "b.jsonl:2")


def test_tools_that_are_left_out_leave_calls_that_nothing_declares(tmp_path):
    lines = [{"messages": CHATS["sound"][1], "tools": json.dumps(TOOLS)}] * 2
    path = write(tmp_path / "a.jsonl", lines)
    loaded = load(data(path, eval=path, ignore=["tools"]), (Chat,), 0)
    kinds = [found.kind for found in examine(loaded).findings if found.kind in KINDS]
    assert kinds == ["calls_without_tools"] * 2, "of train and of eval"
