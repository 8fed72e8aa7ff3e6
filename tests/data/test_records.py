"""Every dialect becomes the right record; every fault is named with key, finding and expectation."""

import json
import os
from pathlib import Path

import pytest

from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.records import Chat, Message, Preference, Prompt, Rationale, RecordError, Supervised

PUBLIC = os.environ.get("RAYTUNE_LLM_PUBLIC_DATA")
SFT = (Supervised, Chat)
ASK, SAY = Message("user", "Hi"), Message("assistant", "Hello")
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CONTENTS = [{"role": "user", "parts": [{"text": "H"}, {"text": "i"}]}, {"role": "model", "parts": [{"text": "Hello"}]}]
PAIR = {"input_text": "Hi", "candidate_0": "Hello", "candidate_1": "What?"}


@pytest.mark.parametrize(
    ("row", "kinds", "record"),
    [
        ({"input_text": "Hi", "output_text": "Hello"}, SFT, Supervised("Hi", "Hello")),
        ({"prompt": "Hi", "completion": "Hello"}, SFT, Supervised("Hi", "Hello")),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, SFT, Chat((ASK, SAY))),
        ({"prompt": "Hi", "completion": MESSAGES[1:]}, SFT, Chat((ASK, SAY))),
        ({"instruction": "Do", "output": "Done"}, SFT, Supervised("Do", "Done")),
        ({"instruction": "Do", "input": "", "output": "Done"}, SFT, Supervised("Do", "Done")),
        ({"instruction": "Do", "input": "it", "output": "Done"}, SFT, Supervised("Do\nit", "Done")),
        ({"messages": MESSAGES}, SFT, Chat((ASK, SAY))),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, MESSAGES[1]]},
            SFT,
            Chat((ASK, SAY)),
        ),
        ({"contents": CONTENTS}, SFT, Chat((ASK, SAY))),
        (
            {"systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]}, "contents": CONTENTS},
            SFT,
            Chat((Message("system", "Be kind."), ASK, SAY)),
        ),
        (
            {"system_instruction": "Be kind.", "contents": CONTENTS},
            SFT,
            Chat((Message("system", "Be kind."), ASK, SAY)),
        ),
        ({**PAIR, "choice": 0}, (Preference,), Preference("Hi", "Hello", "What?")),
        ({**PAIR, "choice": 1}, (Preference,), Preference("Hi", "What?", "Hello")),
        ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, (Preference,), Preference("Hi", "A", "B")),
        (
            {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": "No"},
            (Preference,),
            Preference((ASK,), (SAY,), (Message("assistant", "No"),)),
        ),
        (
            {"prompt": "Hi", "chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No"}]},
            (Preference,),
            Preference((ASK,), (SAY,), (Message("assistant", "No"),)),
        ),
        ({"input_text": "Hi", "output_text": "A", "rationale": "B"}, (Rationale,), Rationale("Hi", "A", "B")),
        ({"input_text": "Hi"}, (Rationale,), Rationale("Hi", None, None)),
        ({"input_text": "Hi", "rationale": None}, (Rationale,), Rationale("Hi", None, None)),
        ({"input_text": "Hi"}, (Prompt,), Prompt("Hi")),
        ({"prompt": "Hi"}, (Prompt,), Prompt("Hi")),
        ({"prompt": MESSAGES[:1]}, (Prompt,), Prompt((ASK,))),
        ({"messages": MESSAGES[:1]}, (Prompt,), Prompt((ASK,))),
        ({"contents": CONTENTS[:1]}, (Prompt,), Prompt((ASK,))),
    ],
)
def test_dialects(row, kinds, record):
    assert parse(row, kinds) == record
    assert parse({**row, "id": 7, "source": ["x"]}, kinds) == record, "unknown keys are passed over"


def test_the_method_decides_what_an_ambiguous_record_is():
    row = {"input_text": "Hi", "output_text": "A", "rationale": "B"}
    assert parse(row, (Supervised,)) == Supervised("Hi", "A")
    assert parse(row, (Prompt,)) == Prompt("Hi")
    assert parse(row, (Rationale, Supervised)) == Rationale("Hi", "A", "B")
    assert parse(row, (Supervised, Rationale)) == Supervised("Hi", "A")
    assert parse({**PAIR, "choice": 0}, (Prompt,)) == Prompt("Hi")
    both = {"prompt": "Hi", "messages": MESSAGES}
    assert parse(both, SFT) == Chat((ASK, SAY)), "the first kind lacks a key, the second has all"


NO_COMPLETION = "a string that is not empty: the record has no completion"


@pytest.mark.parametrize(
    ("row", "kinds", "message"),
    [
        ([1, 2], SFT, "record: found a list of 2, expected a JSON object"),
        ({"prompt": "Hi", "chosen": "A"}, (Preference, Prompt), "rejected: found no such key among 'prompt', 'chosen'"),
        (None, SFT, "record: found null, expected a JSON object"),
        (
            {"input_text": "Hi"},
            SFT,
            f"output_text: found no such key among 'input_text', expected {NO_COMPLETION}, for a Supervised record",
        ),
        (
            {"input_text": "Hi", "output_text": None},
            SFT,
            f"output_text: found null, expected {NO_COMPLETION}, for a Supervised record",
        ),
        (
            {"input_text": "Hi", "output_text": " \n"},
            SFT,
            f"output_text: found the string ' \\n', expected {NO_COMPLETION}",
        ),
        ({"prompt": "Hi", "completion": ""}, SFT, f"completion: found the string '', expected {NO_COMPLETION}"),
        (
            {"instruction": "Do", "outptu": "Done"},
            SFT,
            "output: found no such key among 'instruction', 'outptu', expected "
            f"{NO_COMPLETION}, for a Supervised record",
        ),
        (
            {"input_text": "Hi", "output_text": 1},
            SFT,
            "output_text: found the number 1, expected a string; put it in quotes",
        ),
        (
            {"input_text": {"a": 1}, "output_text": "x"},
            SFT,
            "input_text: found an object with keys 'a', expected a string that is not empty: the record has no prompt",
        ),
        (
            {"words": "Hi", "label": "x"},
            SFT,
            "keys: found 'words', 'label', expected a Supervised record (input_text+output_text or prompt+completion "
            "or instruction+output) or a Chat record (prompt+completion or instruction+output or contents or messages "
            "or conversations); or name the file's own keys: data.columns.prompt=question",
        ),
        (
            {},
            (Prompt,),
            "keys: found none, expected a Prompt record (input_text or prompt or messages or contents or "
            "conversations)",
        ),
        (
            {**PAIR, "choice": 0},
            (Supervised,),
            "record: found a Preference record with keys 'input_text', 'candidate_0', 'candidate_1', 'choice', "
            "expected a Supervised record (input_text+output_text or prompt+completion or instruction+output)",
        ),
        (
            {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
            (Supervised,),
            "record: found a Chat record, expected a Supervised record "
            "(input_text+output_text or prompt+completion or instruction+output)",
        ),
        (
            {"messages": []},
            SFT,
            'messages: found a list of 0, expected a list of turns, [{"role": "user", "content": "…"}, …]',
        ),
        (
            {"messages": ["Hi"]},
            SFT,
            'messages[0]: found the string \'Hi\', expected a turn, {"role": "user", "content": "…"}',
        ),
        (
            {"messages": [{"role": "bot", "content": "Hi"}]},
            SFT,
            "messages[0].role: found the string 'bot', expected one of system, developer, user, assistant, model, tool",
        ),
        (
            {"messages": [{"content": "Hi"}]},
            SFT,
            "messages[0].role: found null, expected one of system, developer, user, assistant, model, tool",
        ),
        (
            {"messages": [MESSAGES[0], {"role": "assistant", "content": ""}]},
            SFT,
            "messages[1].content: found the string '', expected a string that is not empty: the turn has no completion",
        ),
        (
            {"messages": [{"role": "user", "content": 5}, MESSAGES[1]]},
            SFT,
            "messages[0].content: found the number 5, expected a string that is not empty",
        ),
        (
            {"messages": MESSAGES[:1]},
            SFT,
            "messages: found no assistant turn (roles: user), expected at least one assistant turn: there is no "
            "completion",
        ),
        (
            {"messages": [*MESSAGES, {"role": "system", "content": "Be kind."}]},
            SFT,
            "messages[2].role: found a system turn, expected the system turn first, and only one",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, MESSAGES[1]]},
            SFT,
            "messages[0].content[0]: found an object with keys 'type', 'image_url', expected a text part, "
            '{"text": "…"}; no other media are read',
        ),
        (
            {"contents": [{"role": "user", "parts": "Hi"}]},
            SFT,
            'contents[0].parts: found the string \'Hi\', expected a list of parts, [{"text": "…"}]',
        ),
        (
            {"prompt": "Hi", "completion": MESSAGES},
            SFT,
            "completion: found turns by user, assistant, expected an answer",
        ),
        (
            {**PAIR, "choice": 2},
            (Preference,),
            "choice: found the number 2, expected 0 or 1, the number of the preferred",
        ),
        (
            {**PAIR, "choice": "1"},
            (Preference,),
            "choice: found the string '1', expected 0 or 1, the number of the preferred",
        ),
        ({**PAIR, "choice": True}, (Preference,), "choice: found true, expected 0 or 1, the number of the preferred"),
        (
            PAIR,
            (Preference,),
            "choice: found no such key among 'input_text', 'candidate_0', 'candidate_1', expected 0 or 1",
        ),
        (
            {**PAIR, "candidate_1": "Hello", "choice": 1},
            (Preference,),
            "candidate_1: found two identical answers, expected two different ones: there is nothing to prefer",
        ),
        (
            {"prompt": "Hi", "chosen": "A", "rejected": "A"},
            (Preference,),
            "rejected: found two identical answers, expected two different ones: there is nothing to prefer",
        ),
        (
            {"prompt": MESSAGES, "chosen": "A", "rejected": "B"},
            (Preference,),
            "prompt: found a last turn by assistant, expected a conversation that ends in a user turn",
        ),
        (
            {"input_text": "Hi", "rationale": 3},
            (Rationale,),
            "rationale: found the number 3, expected a string; put it in quotes",
        ),
        (
            {"input_text": "  "},
            (Prompt,),
            "input_text: found the string '  ', expected a string that is not empty: the record",
        ),
        (
            {"messages": MESSAGES},
            (Prompt,),
            "messages: found a last turn by assistant, expected a conversation that ends in a user turn",
        ),
    ],
)
def test_faults_are_named(row, kinds, message):
    with pytest.raises(RecordError) as caught:
        parse(row, kinds)
    assert str(caught.value).startswith(message)
    assert str(caught.value) == f"{caught.value.key}: found {caught.value.found}, expected {caught.value.expected}"


@pytest.mark.real
@pytest.mark.skipif(PUBLIC is None, reason="RAYTUNE_LLM_PUBLIC_DATA is not set")
@pytest.mark.parametrize(
    ("folder", "kind", "sizes"),
    [
        ("isarcasm_cls", Supervised, (3199, 256)),
        ("isarcasm_gen", Supervised, (736, 128)),
        ("isarcasm_pref", Preference, (739, 128)),
        ("sgd_chat", Chat, (558, 128)),
        ("xquad_en", Supervised, (856, 100)),
        ("svamp_dss", Rationale, (672, 128)),
        ("cqa_dss", Rationale, (4000, 256)),
        ("gsm8k_dss", Rationale, (4000, 256)),
        ("gsm8k_correctness_pref", Preference, (403, 128)),
    ],
)
def test_public_data(folder, kind, sizes):
    for split, size in zip(("train", "eval"), sizes, strict=True):
        lines = Path(PUBLIC, "data", folder, f"{split}.jsonl").read_text().splitlines()
        records = [parse(json.loads(line), (kind,)) for line in lines]
        assert len(records) == size and {type(record) for record in records} == {kind}
        if kind is Rationale:
            assert all(record.label and record.rationale for record in records)
