"""langchain-openai: ChatOpenAI and OpenAI."""

from __future__ import annotations

from typing import Any

from check import CHAT, KEY, MODEL, PERSON, URL, WEATHER, asked
from langchain_openai import ChatOpenAI, OpenAI

ASK: dict[str, Any] = {"base_url": URL, "api_key": KEY, "temperature": 0, "max_retries": 0}
SAY = "Is it a good idea?"


def streamed() -> bool:
    chat = ChatOpenAI(model=MODEL, max_tokens=8, **ASK)
    return "".join(str(piece.content) for piece in chat.stream(SAY)) == chat.invoke(SAY).content


def structured() -> bool:
    chat = ChatOpenAI(model=CHAT, max_tokens=64, **ASK)
    found: Any = chat.with_structured_output({"title": "person", **PERSON}, method="json_schema").invoke(SAY)
    return set(found) == {"name", "age"}


def tools() -> bool:
    chat = ChatOpenAI(model=CHAT, max_tokens=64, **ASK)
    found = chat.bind_tools([WEATHER], tool_choice="required").invoke(SAY)
    return found.tool_calls[0]["args"]["city"] in ("Bern", "Oslo")


def texts() -> bool:
    text = OpenAI(model=MODEL, max_tokens=8, **ASK)
    return text.batch(["The", "Is it"]) == [text.invoke("The"), text.invoke("Is it")]


def streamed_texts() -> bool:
    text = OpenAI(model=MODEL, max_tokens=8, **ASK)
    return "".join(text.stream("The")) == text.invoke("The")


asked("ChatOpenAI: invoke, stream", streamed)
asked("ChatOpenAI: with_structured_output", structured)
asked("ChatOpenAI: bind_tools", tools)
asked("OpenAI: invoke, batch", texts)
asked("OpenAI: stream", streamed_texts)
