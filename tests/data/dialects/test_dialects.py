"""Dialects beyond plain prompts and answers, and that no key of a record is ignored silently."""

import json

import pytest
from example_records import CALL, EXAMPLES, TOOL, WITH_TOOLS

from raytune_llm.data.dialects.parsing import MOST_PLANS, Reader, parse
from raytune_llm.data.dialects.values import THOUGHTS_LEFT
from raytune_llm.data.question import last_answer, plain, question
from raytune_llm.data.records import Chat, Message, PlainText, Preference, Prompt, Rationale, RecordError, Supervised
from raytune_llm.errors import InputError

SFT, PREF, RLHF = (Supervised, Chat, Preference, PlainText), (Preference,), (Preference, Supervised, Prompt)
U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
ASK, SAY, NO = Message("user", "Hi"), Message("assistant", "Hello"), Message("assistant", "No")
KIND = Message("system", "Be kind.")
TOOLS = json.dumps([TOOL])
CALLS = json.dumps(
    [{"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
)
RECORDS = {
    "native": Supervised("Hi", "Hello"),
    "prompt and completion": Supervised("Hi", "Hello"),
    "prompt and completion of turns": Chat((KIND, ASK, SAY)),
    "alpaca": Supervised("Do\nit", "Done"),
    "alpaca with history": Chat(
        (
            KIND,
            Message("user", "a"),
            Message("assistant", "b"),
            Message("user", "c"),
            Message("assistant", "d"),
            Message("user", "Do"),
            Message("assistant", "Done"),
        )
    ),
    "plain text": PlainText("Once upon a time"),
    "messages": Chat((KIND, ASK, SAY, ASK, NO)),
    "messages with tools": Chat(
        (
            Message("system", "Be brief.", tools=TOOLS),
            ASK,
            Message("assistant", "", tool_calls=CALLS),
            Message("tool", "dry", call_id="call00001"),
            Message("assistant", "No rain.", learn=False),
            Message("user", "And?"),
            Message("assistant", "Let me see.", tool_calls=CALLS),
        )
    ),
    "sharegpt": Chat((KIND, ASK, Message("assistant", "Hello", learn=False), ASK, SAY)),
    "gemini": Chat((KIND, ASK, SAY)),
    "candidates": Preference("Hi", "b", "a"),
    "chosen and rejected": Preference("Hi", "a", "b"),
    "chosen and rejected turns": Preference((Message("user", "Hi", tools=TOOLS),), (SAY,), (NO,)),
    "implicit prompt": Preference((ASK,), (SAY,), (NO,)),
    "hh-rlhf": Preference((ASK,), (Message("assistant", "a"),), (Message("assistant", "b"),)),
    "openai preference": Preference((Message("user", "Hi", tools=TOOLS),), (SAY,), (NO,)),
    "vertex preference": Preference((ASK,), (SAY,), (NO,)),
    "rationale": Rationale("Hi", "a", "b"),
    "prompt": Prompt((KIND, ASK)),
    "prompt of messages": Prompt((ASK,)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_dialect_gives_its_record(name):
    row, kinds = EXAMPLES[name]
    unused = {"messages with tools": ("parallel_tool_calls", "messages[].name", THOUGHTS_LEFT)}.get(name, ())
    assert Reader(kinds).read(row) == (RECORDS[name], unused)
    columns = {"text": "text"} if name == "plain text" else {}
    with_id = Reader(kinds, columns=columns).read({**row, "id": 7, "note": None})
    assert with_id == (RECORDS[name], _sorted(row, unused))
    assert Reader(kinds, ignore=["id"]).read({**row, "id": 7}) == (RECORDS[name], unused)


def _sorted(row, unused):
    """Unread keys of the record, in its order, before those of its turns."""
    return (*(key for key in unused if key in row), "id", *(key for key in unused if key not in row))


def test_every_dialect_has_an_example():
    assert RECORDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"tools": TOOLS, "messages": [U, A]}, Chat((Message("user", "Hi", tools=TOOLS), SAY))),
        ({"tools": [TOOL["function"]], "messages": [U, A]}, Chat((Message("user", "Hi", tools=TOOLS), SAY))),
        ({"tools": [], "system": "", "messages": [U, A]}, Chat((ASK, SAY))),
        ({"functions": [], "images": [], "messages": [{**U, "function_call": None}, A]}, Chat((ASK, SAY))),
        ({"messages": [U, {**A, "weight": 1.0, "train": True}]}, Chat((ASK, SAY))),
        ({"messages": [{**U, "weight": 0, "train": False}, A]}, Chat((ASK, SAY))),
        ({"messages": [U, {**A, "tool_calls": []}]}, Chat((ASK, SAY))),
        ({"conversations": [U, A]}, Chat((ASK, SAY))),
        ({"messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]}, Chat((ASK, SAY))),
        ({"messages": [U, {**A, "reasoning_content": "Let me think."}]}, Chat((ASK, SAY))),
        (
            {
                "messages": [
                    U,
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"text": "Hello"}]},
                ]
            },
            Chat((ASK, SAY)),
        ),
        (
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}]},
                    {
                        "role": "model",
                        "parts": [{"text": "Hm.", "thought": True}, {"text": "Hello", "thoughtSignature": "x"}],
                    },
                ]
            },
            Chat((ASK, SAY)),
        ),
        (
            {"prompt": [U, A, U], "completion": [A]},
            Chat((ASK, Message("assistant", "Hello", learn=False), ASK, SAY)),
        ),
        (
            {"instruction": "Hi", "input": " \n", "output": "Hello", "history": [], "system": ""},
            Supervised("Hi", "Hello"),
        ),
        ({"prompt": "Hi", "completion": "Hello", "label": 3}, Supervised("Hi", "Hello")),
        (
            {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "system": "Be kind."},
            Preference((KIND, ASK), (SAY,), (NO,)),
        ),
        (
            {"chosen": [U, A, U, A], "rejected": [U, A, U, {**A, "content": "No"}]},
            Preference((ASK, SAY, ASK), (SAY,), (NO,)),
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Hi\n\nAssistant: Hello",
                "rejected": "\n\nHuman: Hi\n\nAssistant: No",
            },
            Preference((ASK,), (SAY, ASK, SAY), (NO,)),
        ),
    ],
)
def test_forms(row, record):
    assert parse(row, SFT) == record


def test_a_turn_may_be_left_out_of_the_loss_alone():
    chat = parse(WITH_TOOLS, SFT)
    assert [turn.learn for turn in chat.messages] == [True, True, True, True, False, True, True]
    assert chat.tools == TOOLS
    assert last_answer(chat.messages) is None and question(chat) is None, "no learned turn is text"
    chat = parse({"messages": [U, A, U, {**A, "weight": 0}]}, SFT)
    assert question(chat) == ((ASK,), "Hello")
    assert plain((ASK, Message("assistant", "", tool_calls="[1]"))) == "user: Hi\nassistant: [1]"


# keys that nothing reads


def test_unread_keys_are_named():
    row = {"messages": [{**U, "id": 1, "\x1b": 2}, {**A, "id": 3, "note": None}], "k" * 100: 1, "a\nb": 2, "none": None}
    assert Reader(SFT).read(row)[1] == ("'" + "k" * 37 + "'…", "'a\\nb'", "messages[].id", "messages[].'\\x1b'")
    call = {**CALL, "index": 0, "function": {**CALL["function"], "parsed": {}}}
    chat, unused = Reader(SFT).read({"messages": [U, {"role": "assistant", "tool_calls": [call, call]}]})
    assert json.loads(chat.messages[1].tool_calls) == json.loads(CALLS) * 2
    assert unused == ("messages[].tool_calls[].index", "messages[].tool_calls[].function.parsed")
    pair = {"input_text": "Hi", "candidate_0": "a", "candidate_1": "b", "choice": 0}
    assert Reader((Prompt,)).read(pair) == (Prompt("Hi"), ("candidate_0", "candidate_1", "choice"))
    assert Reader(SFT).read({"input_text": "a", "output_text": "b", "rationale": "c"})[1] == ("rationale",)


def test_keys_are_left_out_wherever_they_are():
    turns = [{**U, "weight": 1, "function_call": {}}, {**A, "weight": 0, "function_call": {"name": "f"}}]
    row = {"messages": turns, "functions": [{"name": "f"}]}
    assert Reader(SFT, ignore=["weight", "function_call", "functions"]).read(row) == (Chat((ASK, SAY)), ())
    parts = [{"text": "Hi"}, {"fileData": {"fileUri": "gs://x"}}]
    row = {"contents": [{"role": "user", "parts": parts}, {"role": "model", "parts": [{"text": "Hello"}]}]}
    assert parse(row, SFT, ignore=["fileData"]) == Chat((ASK, SAY))
    assert parse({"prompt": "Hi", "completion": "Hello", "label": False}, SFT, ignore=["label"]) == Supervised(
        "Hi", "Hello"
    )
    openai = {"input": {"messages": [U], "tools": [TOOL]}, "preferred_output": [A], "non_preferred_output": "No"}
    assert parse(openai, PREF, ignore=["tools"]) == Preference((ASK,), (SAY,), (NO,))


def test_two_dialects_must_hold_the_same():
    both = {"prompt": "Hi", "completion": "Hello"}
    assert Reader(SFT).read({**both, "messages": [U, A]}) == (Supervised("Hi", "Hello"), ("messages",))
    assert Reader(RLHF).read({**both, "messages": [U, A]}) == (Supervised("Hi", "Hello"), ("messages",))
    other = {**both, "messages": [U, {**A, "content": "No"}]}
    with pytest.raises(RecordError, match="'prompt', 'completion' and also 'messages', which hold different things"):
        parse(other, SFT)
    assert parse(other, SFT, ignore=["messages"]) == Supervised("Hi", "Hello")
    assert parse(other, SFT, ignore=["completion"]) == Chat((ASK, NO))
    ultrafeedback = {"prompt": "Hi", "chosen": [U, A], "rejected": [U, {**A, "content": "No"}], "messages": [U, A]}
    assert parse(ultrafeedback, PREF) == Preference((ASK,), (SAY,), (NO,))
    assert parse(ultrafeedback, SFT) == Chat((ASK, SAY))
    with pytest.raises(RecordError, match="which hold different things"):
        parse({**ultrafeedback, "messages": [U, {**A, "content": "Else"}]}, PREF)
    ultrachat = {"prompt": "Hi", "messages": [U, A]}
    assert Reader(SFT).read(ultrachat) == (Chat((ASK, SAY)), ("prompt",))
    stanford = {"instruction": "Do", "input": "", "output": "Done", "text": "### Instruction: Do ### Response: Done"}
    assert Reader(SFT).read(stanford) == (Supervised("Do", "Done"), ("text",))


def test_a_text_is_learned_whole_where_it_is_alone_or_named():
    assert parse({"text": "Once", "label": None}, SFT) == PlainText("Once")
    pile = {"text": "Once", "meta": {"source": "book"}}
    with pytest.raises(RecordError, match=r"no other keys, or data\.columns\.text=text to learn the texts whole"):
        parse(pile, SFT)
    assert Reader(SFT, columns={"text": "text"}).read(pile) == (PlainText("Once"), ("meta",))
    assert parse({"content": "Once", "id": 7}, SFT, columns={"text": "content"}) == PlainText("Once")
    assert Reader(SFT).read({"Unnamed: 0": 3, "text": "Once"}) == (PlainText("Once"), ("Unnamed: 0",))
    with pytest.raises(RecordError, match="plain text with keys 'text', 'x', expected no other keys"):
        Reader((PlainText,)).read({"text": "Once", "x": 1})
    labelled = {"text": "Once", "label": "story"}
    assert parse(labelled, SFT, columns={"prompt": "text", "completion": "label"}) == Supervised("Once", "story")
    with pytest.raises(RecordError, match="plain text with keys 'text', expected a Preference record"):
        parse({"text": "Once"}, PREF)
    assert question(PlainText("Once")) is None


# columns


def test_columns_of_other_names():
    row = {"question": "Hi", "answer": "Hello", "id": 1}
    columns = {"prompt": "question", "completion": "answer"}
    assert Reader(SFT, columns=columns).read(row) == (Supervised("Hi", "Hello"), ("id",))
    assert parse({"dialog": [U, A]}, SFT, columns={"messages": "dialog"}) == Chat((ASK, SAY))
    own = {**row, "prompt": "Another"}
    assert Reader(SFT, columns=columns).read(own) == (Supervised("Hi", "Hello"), ("id", "prompt (of the file)"))
    swapped = Reader(SFT, columns={"prompt": "completion", "completion": "prompt"})
    assert swapped.read({"prompt": "Hello", "completion": "Hi"}) == (Supervised("Hi", "Hello"), ())
    lacking = {"question": "Hi", "reasons": None}
    reasons = {"input_text": "question", "rationale": "reasons"}
    assert parse(lacking, (Rationale,), columns=reasons) == Rationale("Hi", None, None)


def test_records_without_any_of_the_columns_are_read_as_they_are():
    reader = Reader(SFT, columns={"text": "body"})
    assert reader.read({"body": "Once", "id": 7}) == (PlainText("Once"), ("id",))
    assert reader.read({"messages": [U, A]}) == (Chat((ASK, SAY)), ())
    with pytest.raises(RecordError, match=r"body: found no such key among 'question', .*data\.columns\.text reads it"):
        reader.read({"question": "Hi"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"promt": "question"}}, "data.columns.promt: no dialect has such a key; did you mean 'prompt'?"),
        ({"columns": {"prompt": "a"}, "ignore": ["a"]}, "data.columns.prompt=a: data.ignore leaves that key out"),
    ],
)
def test_columns_that_can_not_be(options, message):
    with pytest.raises(InputError) as caught:
        Reader(SFT, **options)
    assert str(caught.value) == message
    with pytest.raises(InputError, match="no dialect has such a key; known: input_text, output_text, label, prompt,"):
        Reader(SFT, columns={"zzzz": "question"})


def test_files_of_ever_new_keys_are_read():
    reader = Reader(SFT)
    for i in range(MOST_PLANS + 10):
        assert reader.read({"prompt": "Hi", "completion": "Hello", f"k{i}": i})[1] == (f"k{i}",)
    assert len(reader._plans) <= MOST_PLANS


@pytest.mark.parametrize("label", [False, 0, 0.0, "false", "False", " no ", "undesirable", "Rejected"])
@pytest.mark.parametrize("keys", [("prompt", "completion"), ("input_text", "output_text")])
def test_an_answer_that_is_not_wanted_is_never_learned(keys, label):
    row = dict.fromkeys(keys, "a") | {"label": label}
    with pytest.raises(RecordError, match="that is not wanted can't be learned from by itself"):
        parse(row, (Supervised,))
    assert isinstance(parse(row, (Supervised,), ignore=["label"]), Supervised)
    assert isinstance(parse(row | {"label": True}, (Supervised,)), Supervised)


@pytest.mark.parametrize("label", [True, "true", "desirable", "Chosen "])
@pytest.mark.parametrize("keys", [("prompt", "completion"), ("input_text", "output_text")])
def test_the_label_of_a_wanted_answer_is_read(keys, label):
    row = dict.fromkeys(keys, "a") | {"label": label}
    assert Reader(SFT).read(row) == (Supervised("a", "a"), ())
    assert Reader(SFT).read(row | {"label": "spam"}) == (Supervised("a", "a"), ("label",))
