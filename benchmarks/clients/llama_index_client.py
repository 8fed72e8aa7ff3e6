"""llama-index: OpenAILike."""

from __future__ import annotations

from typing import Any

from check import CHAT, KEY, MODEL, URL, asked
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

ASK: dict[str, Any] = {"api_base": URL, "api_key": KEY, "temperature": 0, "max_retries": 0, "context_window": 256}
SAY = "Is it a good idea?"


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def chat() -> bool:
    llm = OpenAILike(model=MODEL, is_chat_model=True, max_tokens=8, **ASK)
    whole = llm.chat([ChatMessage(role="user", content=SAY)]).message.content
    return "".join(piece.delta or "" for piece in llm.stream_chat([ChatMessage(role="user", content=SAY)])) == whole


def complete() -> bool:
    llm = OpenAILike(model=MODEL, is_chat_model=False, max_tokens=8, **ASK)
    return [piece.text for piece in llm.stream_complete(SAY)][-1] == llm.complete(SAY).text


def tools() -> bool:
    llm = OpenAILike(model=CHAT, is_chat_model=True, is_function_calling_model=True, max_tokens=64, **ASK)
    found = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=SAY, tool_required=True)
    return llm.get_tool_calls_from_response(found)[0].tool_name == "weather"


asked("OpenAILike: chat, stream_chat", chat)
asked("OpenAILike: complete, stream_complete", complete)
asked("OpenAILike: chat_with_tools", tools)
