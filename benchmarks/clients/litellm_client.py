"""litellm: chats, batches, streams, tools."""

from __future__ import annotations

import json
from typing import Any

import litellm
from check import CHAT, KEY, MODEL, URL, WEATHER, asked

SAY = [{"role": "user", "content": "Is it a good idea?"}]
ASK: dict[str, Any] = {"api_base": URL, "api_key": KEY, "temperature": 0, "max_tokens": 8, "num_retries": 0}


def chat(**more: Any) -> Any:
    return litellm.completion(**{"model": f"openai/{MODEL}", "messages": SAY, **ASK, **more})


def streamed() -> bool:
    text = "".join(event.choices[0].delta.content or "" for event in chat(stream=True))
    return text == chat().choices[0].message.content


def batch() -> bool:
    found = litellm.batch_completion(model=f"openai/{MODEL}", messages=[SAY, SAY], **ASK)
    return len({one.choices[0].message.content for one in found}) == 1


def texts() -> bool:
    found = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt=["The", "Is it"], **ASK)
    return [choice.index for choice in found.choices] == [0, 1]


def tools() -> bool:
    more = {"model": f"openai/{CHAT}", "tools": [WEATHER], "tool_choice": "required", "max_tokens": 64}
    [call] = chat(**more).choices[0].message.tool_calls
    return json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")


asked("chat, whole and streamed", streamed)
asked("batch_completion", batch)
asked("text_completion: a list", texts)
asked("tools: required call", tools)
