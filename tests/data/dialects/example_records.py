"""One valid record of each dialect, and the kinds it is read as."""

from raytune_llm.data.records import Chat, PlainText, Preference, Prompt, Rationale, Supervised

SFT, PREF = (Supervised, Chat, Preference, PlainText), (Preference,)
U, A, B = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No"))
)
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
CONTENTS = [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Hello"}]}]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WITH_TOOLS = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        U,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1},
        {"role": "tool", "tool_call_id": "call00001", "content": "dry"},
        {"role": "assistant", "content": "No rain.", "weight": 0},
        {"role": "user", "content": [{"type": "text", "text": "And?"}], "name": "Ann"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL], "reasoning_content": "Hm."},
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}
EXAMPLES = {
    "native": ({"input_text": "Hi", "output_text": "Hello"}, SFT),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello", "label": True}, SFT),
    "prompt and completion of turns": ({"prompt": [U], "completion": [A], "system": "Be kind."}, SFT),
    "alpaca": ({"instruction": "Do", "input": "it", "output": "Done"}, SFT),
    "alpaca with history": (
        {"instruction": "Do", "input": "", "output": "Done", "system": "Be kind.", "history": [["a", "b"], ["c", "d"]]},
        SFT,
    ),
    "plain text": ({"text": "Once upon a time"}, SFT),
    "messages": ({"messages": [{"role": "system", "content": "Be kind."}, U, A, U, B]}, SFT),
    "messages with tools": (WITH_TOOLS, SFT),
    "sharegpt": ({"system": "Be kind.", "conversations": [HUMAN, {**GPT, "train": False}, HUMAN, GPT]}, SFT),
    "gemini": ({"systemInstruction": {"parts": [{"text": "Be kind."}]}, "contents": CONTENTS}, SFT),
    "candidates": ({"input_text": "Hi", "candidate_0": "a", "candidate_1": "b", "choice": 1}, PREF),
    "chosen and rejected": ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, PREF),
    "chosen and rejected turns": ({"prompt": [U], "chosen": [A], "rejected": [U, B], "tools": [TOOL]}, PREF),
    "implicit prompt": ({"chosen": [U, A], "rejected": [U, B]}, PREF),
    "hh-rlhf": ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}, PREF),
    "openai preference": (
        {"input": {"messages": [U], "tools": [TOOL]}, "preferred_output": [A], "non_preferred_output": [B]},
        PREF,
    ),
    "vertex preference": (
        {
            "contents": CONTENTS[:1],
            "completions": [
                {"score": 1.0, "completion": CONTENTS[1]},
                {"score": 0.0, "completion": {"role": "model", "parts": [{"text": "No"}]}},
            ],
        },
        PREF,
    ),
    "rationale": ({"input_text": "Hi", "output_text": "a", "rationale": "b"}, (Rationale,)),
    "prompt": ({"prompt": "Hi", "system": "Be kind."}, (Prompt,)),
    "prompt of messages": ({"messages": [U]}, (Prompt,)),
}
