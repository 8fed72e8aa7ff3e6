"""Odd records: each is refused with one exact, short and printable message that names the key, and what to do."""

import pytest

from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.records import Chat, PlainText, Preference, Prompt, Rationale, RecordError, Supervised

SFT, PREF, ASK, DSS = (Supervised, Chat, Preference, PlainText), (Preference,), (Prompt,), (Rationale,)
WANTED = (
    "a Supervised record (input_text+output_text or prompt+completion or instruction+output) or a Chat "
    "record (prompt+completion or instruction+output or contents or messages or conversations) or a "
    "Preference record (input_text+candidate_0+candidate_1+choice or prompt+chosen+rejected or "
    "chosen+rejected or input+preferred_output+non_preferred_output or contents+completions) or a PlainText "
    "record (text)"
)
U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
P = {"prompt": "Hi", "completion": "Hello"}
T = [{"text": "a"}]
C = [{"role": "user", "parts": T}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
}


def M(*turns):
    return {"messages": list(turns)}


def G(user, model, **others):
    return {"contents": [{"role": "user", "parts": user}, {"role": "model", "parts": model}], **others}


def comp(score, text):
    return {"score": score, "completion": {"role": "model", "parts": [{"text": text}]}}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


deep = nested(100_000)
CASES = {}


def odd(name, row, *, message, kinds=SFT, **options):
    CASES[name] = (row, kinds, options, message)


# fmt: off
odd('surrogate in a prompt', {**P, "prompt": "Hi \ud800"}, message=
        "prompt: found a lone surrogate, '\\ud800', at character 4, expected text: half of a character pair is no "
        'character, and no tokenizer takes it; remove it')
odd('surrogate in a completion', {**P, "completion": "\udfffx"}, message=
        "completion: found a lone surrogate, '\\udfff', at character 1, expected text: half of a character pair is "
        'no character, and no tokenizer takes it; remove it')
odd('surrogate in a turn', M(U, {**A, "content": "a\ud83d"}), message=
        "messages[1].content: found a lone surrogate, '\\ud83d', at character 2, expected text: half of a "
        'character pair is no character, and no tokenizer takes it; remove it')
odd('surrogate in a text part', M({"role": "user", "content": [{"type": "text", "text": "\ud800"}]}, A), message=
        "messages[0].content: found a lone surrogate, '\\ud800', at character 1, expected text: half of a "
        'character pair is no character, and no tokenizer takes it; remove it')
odd('surrogate in an unread key', {**P, "k\ud800": 1}, message=
        "'k\\ud800': found a key with a lone surrogate, expected text: half of a character pair is no character")
odd("surrogate in a turn's key", M({**U, "k\ud800": 1}, A), message=
        "messages[0].'k\\ud800': found a key with a lone surrogate, expected text: half of a character pair is no "
        'character')
odd('surrogate in a role', M({"role": "us\ud800", "content": "Hi"}, A), message=
        "messages[0].role: found the string 'us\\ud800', expected one of system, developer, user, assistant, "
        'model, tool')
odd('surrogate in a tool', {**M(U, A), "tools": [{"name": "f", "description": "\ud800"}]}, message=
        'tools: found a lone surrogate or a NUL character, expected text: no tokenizer takes it; remove it')
odd("surrogate in a tool's name", {**M(U, A), "tools": [{"name": "f\ud800"}]}, message=
        "tools[0].function.name: found a lone surrogate, '\\ud800', at character 2, expected text: half of a "
        'character pair is no character, and no tokenizer takes it; remove it')
odd('surrogate in call arguments',
    M(U, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"\ud800": 1}}]}),
    message=
        'messages[1].tool_calls: found a lone surrogate or a NUL character, expected text: no tokenizer takes it; '
        'remove it')
odd('NUL in a prompt', {**P, "prompt": "a\0b"}, message=
        'prompt: found a NUL character at character 2, expected text without NUL characters; remove them')
odd('NUL in a turn', M({**U, "content": "\0a"}, A), message=
        'messages[0].content: found a NUL character at character 1, expected text without NUL characters; remove '
        'them')
odd('zero-width completion', {**P, "completion": "\u200b\u200b"}, message=
        "completion: found only invisible characters, '\\u200b\\u200b', expected a string that is not empty: the "
        'record has no completion')
odd('zero-width label', {"input_text": "a", "output_text": "\ufeff"}, kinds=DSS, message=
        "output_text: found only invisible characters, '\\ufeff', expected a string that is not empty: the record "
        'has no completion')
odd('zero-width prompt', {**P, "prompt": " \u2060"}, message=
        "prompt: found only invisible characters, ' \\u2060', expected a string that is not empty: the record has "
        'no prompt')
odd('zero-width turn', M(U, {**A, "content": "\u200d"}), message=
        "messages[1].content: found only invisible characters, '\\u200d', expected a string that is not empty: the "
        'turn has no completion')
odd('filler characters', {**P, "completion": "\u3164\u2800"}, message=
        "completion: found only invisible characters, '\\u3164\\u2800', expected a string that is not empty: the "
        'record has no completion')
odd('control characters only', {**P, "completion": "\x1b\x07"}, message=
        "completion: found only invisible characters, '\\x1b\\x07', expected a string that is not empty: the "
        'record has no completion')
odd('number as prompt', {**P, "prompt": 1}, message=
        'prompt: found the number 1, expected a string; put it in quotes')
odd('huge number as prompt', {**P, "prompt": 10**5000}, message=
        'prompt: found a number of 16610 bits, expected a string; put it in quotes')
odd('NaN as completion', {**P, "completion": float("nan")}, message=
        'completion: found the number nan, expected a string; put it in quotes')
odd('infinity as completion', {**P, "completion": float("inf")}, message=
        'completion: found the number inf, expected a string; put it in quotes')
odd('true as prompt', {**P, "prompt": True}, message=
        'prompt: found true, expected a string; put it in quotes')
odd('object as completion', {**P, "completion": {"a": 1}}, message=
        "completion: found an object with keys 'a', expected a string that is not empty: the record has no "
        'completion')
odd('list as instruction', {"instruction": ["a"], "output": "b"}, message=
        'instruction: found a list of 1, expected a string that is not empty: the record has no prompt')
odd('escape sequences in a value', {**P, "completion": ["\x1b[31m"]}, message=
        'completion[0]: found the string \'\\x1b[31m\', expected a turn, {"role": "user", "content": "…"}')
odd('escape sequences in a role', M({"role": "\x1b[31mred\n", "content": "x"}), message=
        "messages[0].role: found the string '\\x1b[31mred\\n', expected one of system, developer, user, assistant, "
        'model, tool')
odd('escape sequences in keys', {"\x1b[31m\n": 1}, message=
        f"keys: found '\\x1b[31m\\n', expected {WANTED}; or name the file's own keys: data.columns.prompt=question")
odd('a key of a megabyte', {"k" * 1_000_000: 1}, message=
        f"keys: found 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk'…, expected {WANTED}; or name the file's own keys: "
        'data.columns.prompt=question')
odd('a value of a megabyte', M({"role": "r" * 1_000_000, "content": "x"}), message=
        "messages[0].role: found the string 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr'…, expected one of system, "
        'developer, user, assistant, model, tool')
odd('a thousand keys', {f"k{i}": 1 for i in range(1000)}, message=
        f"keys: found 'k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7' and 992 more, expected {WANTED}; or name the "
        "file's own keys: data.columns.prompt=question")
odd('object with a thousand keys', {**P, "prompt": {f"k{i}": 1 for i in range(1000)}}, message=
        "prompt: found an object with keys 'k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7' and 992 more, expected a "
        'string that is not empty: the record has no prompt')
odd('no keys', {}, message=
        f'keys: found none, expected {WANTED}')
odd('all keys null', {"prompt": None, "completion": None}, message=
        f"keys: found 'prompt', 'completion', all null or left out, expected {WANTED}")
odd('a string', "Hi", message=
        "record: found the string 'Hi', expected a JSON object")
odd('a number', 3, message=
        'record: found the number 3, expected a JSON object')
odd('null', None, message=
        'record: found null, expected a JSON object')
odd('a list', [P], message=
        'record: found a list of 1, expected a JSON object')
odd('text of other keys', {"text": "Once upon a time", "meta": "book"}, message=
        "text: found plain text with keys 'text', 'meta', expected no other keys, or data.columns.text=text to learn "
        f'the texts whole; else {WANTED}')
odd('text that is empty', {"text": " "}, message=
        "text: found the string ' ', expected a string that is not empty")
odd('question and answer', {"question": "a", "answer": "b"}, message=
        f"keys: found 'question', 'answer', expected {WANTED}; or name the file's own keys: "
        'data.columns.prompt=question')
odd('messages and prompt+completion', {**M(U, {**A, "content": "Other"}), **P}, message=
        "keys: found 'prompt', 'completion' and also 'messages', which hold different things, expected one of the "
        'two; data.ignore=[messages] leaves it out')
odd('messages and input_text+output_text',
    {**M(U, {**A, "content": "Other"}), "input_text": "a", "output_text": "b"},
    message=
        "keys: found 'input_text', 'output_text' and also 'messages', which hold different things, expected one of "
        'the two; data.ignore=[messages] leaves it out')
odd('contents and messages',
    {**M(U, A), "contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]},
    message=
        "keys: found 'contents' and also 'messages', which hold different things, expected one of the two; "
        'data.ignore=[messages] leaves it out')
odd('preference with other messages',
    {"prompt": "Hi", "chosen": "A", "rejected": "B", **M(U, {**A, "content": "C"})},
    kinds=PREF, message=
        "keys: found 'prompt', 'chosen', 'rejected' and also 'messages', which hold different things, expected one "
        'of the two; data.ignore=[messages] leaves it out')
odd('completion and another chosen', {**P, "chosen": "A", "rejected": "B"}, message=
        "keys: found 'prompt', 'completion' and also 'prompt', 'chosen', 'rejected', which hold different things, "
        'expected one of the two; data.ignore=[chosen,rejected] leaves it out')
odd('two prompts', {"prompt": "a", "input_text": "b"}, kinds=ASK, message=
        "keys: found 'input_text' and also 'prompt', which hold different things, expected one of the two; "
        'data.ignore=[prompt] leaves it out')
odd('begins with an assistant turn', M(A, U, A), message=
        'messages[0].role: found an assistant turn, expected a user turn, or a system turn, first: an answer needs '
        'a prompt; remove the turn')
odd('ShareGPT begins with gpt',
    {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
    message=
        'conversations[0].from: found an assistant turn, expected a user turn, or a system turn, first: an answer '
        'needs a prompt; remove the turn')
odd('prompt begins with an assistant turn', {"prompt": [A, U], "completion": "x"}, message=
        'prompt[0].role: found an assistant turn, expected a user turn, or a system turn, first: an answer needs a '
        'prompt; remove the turn')
odd('Gemini begins with model', {"contents": [{"role": "model", "parts": [{"text": "b"}]}]}, message=
        'contents[0].role: found an assistant turn, expected a user turn, or a system turn, first: an answer needs '
        'a prompt; remove the turn')
odd('tool turn first', M({"role": "tool", "content": "1"}, A), message=
        "messages[0].role: found a tool turn, expected a tool's result only after an assistant turn, or after "
        'another result')
odd('tool turn after a user turn', M(U, {"role": "tool", "content": "1"}, A), message=
        "messages[1].role: found a tool turn, expected a tool's result only after an assistant turn, or after "
        'another result')
odd('second system turn', M(U, A, {"role": "system", "content": "x"}), message=
        'messages[2].role: found a system turn, expected the system turn first, and only one')
odd('developer and system',
    M({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}, U, A),
    message=
        'messages[1].role: found a system turn, expected the system turn first, and only one')
odd('system key and system turn', {"system": "x", **M({"role": "system", "content": "y"}, U, A)}, message=
        'system: found a system prompt, expected only one: messages[0] is a system turn already')
odd('role function', M(U, {"role": "function", "content": "1"}, A), message=
        "messages[1].role: found the string 'function', expected one of system, developer, user, assistant, model, "
        'tool')
odd('role missing', M({"content": "Hi"}, A), message=
        'messages[0].role: found null, expected one of system, developer, user, assistant, model, tool')
odd('role a list', M({"role": [], "content": "Hi"}, A), message=
        'messages[0].role: found a list of 0, expected one of system, developer, user, assistant, model, tool')
odd('turn is a string', M("Hi", A), message=
        'messages[0]: found the string \'Hi\', expected a turn, {"role": "user", "content": "…"}')
odd('turn is null', M(None, A), message=
        'messages[0]: found null, expected a turn, {"role": "user", "content": "…"}')
odd('turns are an object', {"messages": {"role": "user"}}, message=
        'messages: found an object with keys \'role\', expected a list of turns, [{"role": "user", "content": '
        '"…"}, …]')
odd('content missing', M({"role": "user"}, A), message=
        'messages[0].content: found null, expected a string that is not empty')
odd('content null', M(U, {"role": "assistant", "content": None}), message=
        'messages[1].content: found null, expected a string that is not empty: the turn has no completion')
odd('content an object', M({"role": "user", "content": {"text": "Hi"}}, A), message=
        "messages[0].content: found an object with keys 'text', expected a string that is not empty")
odd('content an empty list', M({"role": "user", "content": []}, A), message=
        'messages[0].content: found a list of 0, expected a list of parts, [{"text": "…"}]')
odd('image part', M({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, A), message=
        'messages[0].content[0]: found an object with keys \'type\', \'image_url\', expected a text part, {"text": '
        '"…"}; no other media are read; data.ignore=[image_url] leaves it out')
odd('text part with a number', M({"role": "user", "content": [{"type": "text", "text": 1}]}, A), message=
        'messages[0].content[0].text: found the number 1, expected a string')
odd('part is a string', M({"role": "user", "content": ["Hi"]}, A), message=
        'messages[0].content[0]: found the string \'Hi\', expected a text part, {"text": "…"}')
odd('thought as text', G(T, [{"text": "hm", "thought": "true"}, {"text": "a"}]), message=
        "contents[1].parts[0].thought: found the string 'true', expected true or false; data.ignore=[thought] leaves "
        'it out')
odd('thought as number', M(U, {"role": "assistant", "content": [{"text": "hm", "thought": 1}]}), message=
        'messages[1].content[0].thought: found the number 1, expected true or false; data.ignore=[thought] leaves '
        'it out')
odd('only thoughts', G(T, [{"text": "hm", "thought": True}]), message=
        'contents[1].parts: found only thoughts, or parts that data.ignore leaves out, expected a part with text')
odd('Gemini file', G([{"fileData": {"fileUri": "gs://x"}}], T), message=
        'contents[0].parts[0]: found an object with keys \'fileData\', expected a text part, {"text": "…"}; no '
        'other media are read; data.ignore=[fileData] leaves it out')
odd('Gemini text and file in one part',
    G([{"text": "a", "inlineData": {}}, {"text": "a", "inlineData": {"data": "x"}}], T),
    message=
        "contents[0].parts[1].inlineData: found an object with keys 'data', media, expected text: nothing else is "
        'read; data.ignore=[inlineData] leaves it out')
odd('Gemini function call', G(T, [{"functionCall": {"name": "f"}}]), message=
        'contents[1].parts[0]: found an object with keys \'functionCall\', expected a text part, {"text": "…"}; no '
        'other media are read; data.ignore=[functionCall] leaves it out')
odd('Gemini system without parts',
    {"systemInstruction": {"role": "system"}, "contents": [{"role": "user", "parts": [{"text": "a"}]}]},
    message=
        'systemInstruction.parts: found null, expected a list of parts, [{"text": "…"}]')
odd('function_call in a turn', M(U, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}), message=
        "messages[1].function_call: found an object with keys 'name', OpenAI's older form of a call, expected "
        'tool_calls in its place; data.ignore=[function_call] leaves it out')
odd('functions', {**M(U, A), "functions": [{"name": "f"}]}, message=
        "functions: found a list of 1, OpenAI's older form of tools, expected tools in its place; "
        'data.ignore=[functions] leaves it out')
odd('refusal', M(U, {"role": "assistant", "content": "x", "refusal": "no"}), message=
        "messages[1].refusal: found the string 'no', a refusal to answer, expected it as the turn's content; "
        'data.ignore=[refusal] leaves it out')
odd('images', {**P, "images": ["a.png"]}, message=
        'images: found a list of 1, media, expected text: nothing else is read; data.ignore=[images] leaves it out')
odd('tools of plain text', {"input_text": "a", "output_text": "b", "tools": [{"name": "f"}]}, message=
        'tools: found a list of 1, what the assistant may call, expected a conversation, for example messages, to '
        'have it; data.ignore=[tools] leaves it out')
odd('system of plain text', {"input_text": "a", "output_text": "b", "system": "c"}, message=
        "system: found the string 'c', a system prompt, expected a conversation, for example messages, to have it; "
        'data.ignore=[system] leaves it out')
odd('weight of a record', {**P, "weight": 0.5}, message=
        'weight: found the number 0.5, how much this counts, expected it on assistant turns only, 0 or 1; '
        'data.ignore=[weight] leaves it out')
odd('margin', {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, kinds=PREF, message=
        'margin: found the number 2, expected no margin: no method here uses by how much an answer is better; '
        'data.ignore=[margin] leaves it out')
odd('chat_template_kwargs', {**M(U, A), "chat_template_kwargs": {"enable_thinking": True}}, message=
        "chat_template_kwargs: found an object with keys 'enable_thinking', options of the chat template, expected "
        'model.chat_template, which is for all records; data.ignore=[chat_template_kwargs] leaves it out')
odd('label false', {**P, "label": False}, message=
        "label: found false, expected true: an answer that is not wanted can't be learned from by itself; remove "
        'the record, or, where label means something else, data.ignore=[label]')
odd('typo inputs', {"instruction": "a", "inputs": "b", "output": "c"}, message=
        "inputs: found an unknown key, expected a known one; did you mean 'input'? Else data.ignore=[inputs] "
        'leaves it out')
odd('typo Input', {"instruction": "a", "Input": "b", "output": "c"}, message=
        "Input: found an unknown key, expected a known one; did you mean 'input'? Else data.ignore=[Input] leaves "
        'it out')
odd('typo sytem', {**M(U, A), "sytem": "c"}, message=
        "sytem: found an unknown key, expected a known one; did you mean 'system'? Else data.ignore=[sytem] leaves "
        'it out')
odd('typo rational', {"input_text": "a", "output_text": "b", "rational": "c"}, kinds=DSS, message=
        "rational: found an unknown key, expected a known one; did you mean 'rationale'? Else "
        'data.ignore=[rational] leaves it out')
odd('typo in a turn', M(U, {**A, "wieght": 0}), message=
        "messages[1].wieght: found an unknown key, expected a known one; did you mean 'weight'? Else "
        'data.ignore=[wieght] leaves it out')
odd('typo toolcalls', M(U, {**A, "toolcalls": []}), message=
        "messages[1].toolcalls: found an unknown key, expected a known one; did you mean 'tool_calls'? Else "
        'data.ignore=[toolcalls] leaves it out')
odd('weight of 0.5', M(U, {**A, "weight": 0.5}), message=
        'messages[1].weight: found the number 0.5, expected 0 (not learned) or 1 (learned); data.ignore=[weight] '
        'leaves it out')
odd('weight true', M(U, {**A, "weight": True}), message=
        'messages[1].weight: found true, expected 0 (not learned) or 1 (learned); data.ignore=[weight] leaves it '
        'out')
odd('weight a string', M(U, {**A, "weight": "0"}), message=
        "messages[1].weight: found the string '0', expected 0 (not learned) or 1 (learned); data.ignore=[weight] "
        'leaves it out')
odd('weight NaN', M(U, {**A, "weight": float("nan")}), message=
        'messages[1].weight: found the number nan, expected 0 (not learned) or 1 (learned); data.ignore=[weight] '
        'leaves it out')
odd('weight of a user turn', M({**U, "weight": 1}, A), message=
        'messages[0].weight: found a turn to learn, expected 0: only assistant turns are learned; '
        'data.ignore=[weight] leaves it out')
odd('train a string', M(U, {**A, "train": "false"}), message=
        "messages[1].train: found the string 'false', expected true or false; data.ignore=[train] leaves it out")
odd('train of a user turn', M({**U, "train": True}, A), message=
        'messages[0].train: found a turn to learn, expected false: only assistant turns are learned; '
        'data.ignore=[train] leaves it out')
odd('train_detail given', M(U, {**A, "train_detail": [{"begin_offset": 0}]}), message=
        'messages[1].train_detail: found a list of 1, which characters of the turn are learned, expected train, '
        'which is for the whole turn; data.ignore=[train_detail] leaves it out')
odd('nothing learned', M(U, {**A, "weight": 0}), message=
        'messages: found only assistant turns with weight 0 or train false, expected at least one that is learned: '
        'nothing would be')
odd('answer with weight 0', {"prompt": [U], "chosen": [{**A, "weight": 0}], "rejected": "x"}, kinds=PREF, message=
        'chosen: found a turn with weight 0 or train false, expected an answer that counts whole')
odd('tool_calls of a user turn', M({**U, "tool_calls": [{"name": "f"}]}, A), message=
        'messages[0].tool_calls: found a list of 1, calls of tools, expected them in assistant turns only; '
        'data.ignore=[tool_calls] leaves it out')
odd('tool_calls an object', M(U, {"role": "assistant", "tool_calls": {"name": "f"}}), message=
        'messages[1].tool_calls: found an object with keys \'name\', expected a list of functions, [{"name": "…", '
        '"arguments": {…}}, …]; data.ignore=[tool_calls] leaves it out')
odd('tool_calls not JSON', M(U, {"role": "assistant", "tool_calls": "[{"}), message=
        'messages[1].tool_calls: found the string \'[{\', expected a list of functions, [{"name": "…", '
        '"arguments": {…}}, …]; data.ignore=[tool_calls] leaves it out')
odd('tool call without a name',
    M(U, {"role": "assistant", "tool_calls": [{"type": "function", "function": {}}]}),
    message=
        "messages[1].tool_calls[0].function.name: found null, expected the function's name, a string")
odd('tool call of another type',
    M(U, {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}),
    message=
        'messages[1].tool_calls[0].type: found the string \'custom\', expected {"type": "function", "function": '
        '{"name": "…", …}}')
odd('tool call a string', M(U, {"role": "assistant", "tool_calls": ["f"]}), message=
        'messages[1].tool_calls[0]: found the string \'f\', expected {"type": "function", "function": {"name": '
        '"…", …}}')
odd('tool call function a string', M(U, {"role": "assistant", "tool_calls": [{"function": "f"}]}), message=
        'messages[1].tool_calls[0].function: found the string \'f\', expected {"type": "function", "function": '
        '{"name": "…", …}}')
odd('arguments not JSON', M(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x=1"}]}), message=
        "messages[1].tool_calls[0].function.arguments: found the string 'x=1', expected a JSON object, or one in a "
        'string')
odd('arguments a list', M(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}), message=
        'messages[1].tool_calls[0].function.arguments: found a list of 1, expected a JSON object, or one in a '
        'string')
odd('arguments with NaN',
    M(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]}),
    message=
        'messages[1].tool_calls: found a number that JSON has no form for, expected finite numbers of usual length')
odd('arguments nested deeply',
    M(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": deep}}]}),
    message=
        'messages[1].tool_calls: found lists or objects nested too deeply, expected at most some hundred levels')
odd('call id a number', M(U, {"role": "assistant", "tool_calls": [{"name": "f", "id": 1}]}), message=
        'messages[1].tool_calls[0].id: found the number 1, expected a string')
odd('tool_call_id a number', M(U, CALL, {"role": "tool", "content": "1", "tool_call_id": 1}, A), message=
        'messages[2].tool_call_id: found the number 1, expected a string')
odd('tool result an object', M(U, CALL, {"role": "tool", "content": {"x": 1}}, A), message=
        "messages[2].content: found an object with keys 'x', expected a string that is not empty")
odd('tools not a list', {**M(U, A), "tools": "search"}, message=
        'tools: found the string \'search\', expected a list of functions, [{"name": "…"}, …]; data.ignore=[tools] '
        'leaves it out')
odd('tools without names', {**M(U, A), "tools": [{"type": "function"}]}, message=
        "tools[0].function.name: found null, expected the function's name, a string")
odd('tools of Gemini', G(T, T, tools=[{"functionDeclarations": []}]), message=
        'tools: found a list of 1, what the assistant may call, expected a conversation, for example messages, to '
        'have it; data.ignore=[tools] leaves it out')
odd('history of plain text', {"input_text": "a", "output_text": "b", "history": [["a", "b"]]}, message=
        'history: found a list of 1, earlier turns, expected a conversation, for example messages, to have it; '
        'data.ignore=[history] leaves it out')
odd('history a string', {"instruction": "a", "output": "b", "history": "x"}, message=
        'history: found the string \'x\', expected a list of pairs, [["question", "answer"], …]')
odd('history of triples', {"instruction": "a", "output": "b", "history": [["a", "b", "c"]]}, message=
        'history[0]: found a list of 3, expected a pair, ["question", "answer"]')
odd('history with a number', {"instruction": "a", "output": "b", "history": [["a", 1]]}, message=
        'history[0][1]: found the number 1, expected a string that is not empty')
odd('history with an empty answer', {"instruction": "a", "output": "b", "history": [["a", ""]]}, message=
        "history[0][1]: found the string '', expected a string that is not empty")
odd('HH without Human', {"chosen": "a", "rejected": "b"}, kinds=PREF, message=
        'chosen: found the string \'a\', expected turns, or text that begins with "\\n\\nHuman: …\\n\\nAssistant: '
        '…": the record has no key prompt')
odd('HH that begins with Assistant',
    {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
    kinds=PREF, message=
        'chosen: found text that begins with an Assistant turn, expected a Human turn first')
odd('HH of two conversations',
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
    kinds=PREF, message=
        'rejected: found no turns in common with chosen before an answer, expected turns that begin as those of '
        'chosen do, up to an answer; or a key prompt')
odd('HH identical',
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    kinds=PREF, message=
        'rejected: found two identical answers, expected two different ones: there is nothing to prefer')
odd('HH with an empty turn',
    {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    kinds=PREF, message=
        "chosen: found the string '', expected text after Assistant:")
odd('HH that ends in Human',
    {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    kinds=PREF, message=
        'chosen: found turns by assistant, user, expected an answer, which begins and ends with an assistant turn')
odd('pairs without a common prompt', {"chosen": [U, A], "rejected": [{**U, "content": "x"}, A]}, kinds=PREF, message=
        'rejected: found no turns in common with chosen before an answer, expected turns that begin as those of '
        'chosen do, up to an answer; or a key prompt')
odd('pair that lacks rejected', {"chosen": [U, A]}, kinds=PREF, message=
        "rejected: found no such key among 'chosen', expected a string that is not empty: the record lacks an "
        'answer, for a Preference record')
odd('OpenAI preference without messages',
    {"input": {}, "preferred_output": [A], "non_preferred_output": [A]},
    kinds=PREF, message=
        'input: found an object without keys, expected an object, {"messages": […]}')
odd('OpenAI preference, input a string',
    {"input": "Hi", "preferred_output": [A], "non_preferred_output": [A]},
    kinds=PREF, message=
        'input: found the string \'Hi\', expected an object, {"messages": […]}')
odd('OpenAI preference, messages null',
    {"input": {"messages": None}, "preferred_output": [A], "non_preferred_output": [A]},
    kinds=PREF, message=
        'input: found an object with keys \'messages\', expected an object, {"messages": […]}')
odd('OpenAI preference, identical',
    {"input": M(U), "preferred_output": [A], "non_preferred_output": [A]},
    kinds=PREF, message=
        'non_preferred_output: found two identical answers, expected two different ones: there is nothing to prefer')
odd('OpenAI preference, answer by user',
    {"input": M(U), "preferred_output": [U], "non_preferred_output": [A]},
    kinds=PREF, message=
        'preferred_output: found turns by user, expected an answer, which begins and ends with an assistant turn')
odd('OpenAI preference, prompt ends in answer',
    {"input": M(U, A), "preferred_output": [A], "non_preferred_output": [A]},
    kinds=PREF, message=
        'input.messages: found a last turn by assistant, expected a conversation that ends in a user turn')
odd('Vertex, one completion', {"contents": C, "completions": [comp(1, "a")]}, kinds=PREF, message=
        'completions: found a list of 1, expected a list of two, one with score 1 and one with score 0')
odd('Vertex, equal scores', {"contents": C, "completions": [comp(1, "a"), comp(1, "b")]}, kinds=PREF, message=
        'completions: found two answers of the same score, expected a list of two, one with score 1 and one with '
        'score 0')
odd('Vertex, score 0.5', {"contents": C, "completions": [comp(0.5, "a"), comp(1, "b")]}, kinds=PREF, message=
        'completions[0].score: found the number 0.5, expected 1 (preferred) or 0')
odd('Vertex, score true', {"contents": C, "completions": [comp(True, "a"), comp(0, "b")]}, kinds=PREF, message=
        'completions[0].score: found true, expected 1 (preferred) or 0')
odd('Vertex, completion null', {"contents": C, "completions": [{"score": 1}, comp(0, "b")]}, kinds=PREF, message=
        'completions[0].completion: found null, expected a turn, {"role": "user", "parts": [{"text": "…"}]}')
odd('Vertex, completion by user',
    {"contents": C, "completions": [{"score": 1, "completion": {"role": "user", "parts": T}}, comp(0, "b")]},
    kinds=PREF, message=
        'completions[0].completion: found turns by user, expected an answer, which begins and ends with an '
        'assistant turn')
odd('column that a row lacks', {"question": "a"}, columns={"prompt":"question","completion":"answer"}, message=
        "answer: found no such key among 'question', expected a key of that name: data.columns.completion reads it "
        'as completion')
odd('column with a number',
    {"question": 1, "answer": "b"},
    columns={"prompt":"question","completion":"answer"}, message=
        'question (read as prompt): found the number 1, expected a string; put it in quotes')
odd('column of turns', {"dialog": [A]}, columns={"messages":"dialog"}, message=
        'dialog[0].role (read as messages): found an assistant turn, expected a user turn, or a system turn, '
        'first: an answer needs a prompt; remove the turn')
odd('needed key ignored', P, ignore=["completion"], message=
        'completion: found a key that data.ignore leaves out, expected a string that is not empty: the record has '
        'no completion, for a Supervised record')
odd('choice NaN',
    {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": float("nan")},
    kinds=PREF, message=
        'choice: found the number nan, expected 0 or 1, the number of the preferred candidate')
odd('choice 1.0', {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 1.0}, kinds=PREF, message=
        'choice: found the number 1.0, expected 0 or 1, the number of the preferred candidate')
odd('all parts left out', G([{"fileData": {}}], T), ignore=["fileData"], message=
        'contents[0].parts: found only thoughts, or parts that data.ignore leaves out, expected a part with text')
# fmt: on


@pytest.mark.parametrize("name", CASES)
def test_odd_records_are_refused(name):
    row, kinds, options, message = CASES[name]
    with pytest.raises(RecordError) as caught:
        Reader(kinds, **options).read(row)
    assert str(caught.value) == message
    assert message.isprintable() and len(message) < 700
    assert message == f"{caught.value.key}: found {caught.value.found}, expected {caught.value.expected}"
