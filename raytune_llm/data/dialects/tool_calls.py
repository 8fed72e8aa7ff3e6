"""Tools and calls of them, in OpenAI's form, as canonical JSON text.

    tools        [{"type": "function", "function": {"name": "…", "description"?, "parameters"?: JSON schema}}, …]
    tool_calls   [{"id"?: "…", "type": "function", "function": {"name": "…", "arguments": "{…}" or {…}}}, …]

What stands alone, {"name": …}, is read as the function; a list may be given as JSON in a string. Keys keep their order,
which a model learns. Leaves out tools that are no functions.
"""

from __future__ import annotations

import json
from typing import Any

from raytune_llm.data.dialects.values import SURROGATE, Row, as_text, left_out, strings
from raytune_llm.data.records import RecordError, show


def parse_tools(value: object, key: str) -> str:
    """What an assistant may call, canonical. Raises RecordError where it is no list of functions."""
    tools = [_function(item, f"{key}[{i}]") for i, item in enumerate(_list(value, key, '{"name": "…"}'))]
    return _json(tools, key)


def parse_calls(row: Row, value: object, key: str) -> str:
    """An assistant's calls, canonical, with arguments as objects. Raises RecordError where they are no such list."""
    calls = []
    for i, item in enumerate(_list(value, key, '{"name": "…", "arguments": {…}}')):
        call = _function(item, f"{key}[{i}]")
        row.leave(row.present(call), ("type", "id", "function"), f"{key}[{i}]")
        row.leave(row.present(call["function"]), ("name", "arguments"), f"{key}[{i}].function")
        given = call["function"].get("arguments")
        arguments = _arguments({} if given is None else given, f"{key}[{i}].function.arguments")
        function = {"name": call["function"]["name"], "arguments": arguments}
        identity = call.get("id")
        if identity is not None and not isinstance(identity, str):
            raise RecordError(f"{key}[{i}].id", show(identity), "a string")
        named = {} if identity is None else {"id": identity}
        calls.append({"type": "function", **named, "function": function})
    return _json(calls, key)


def names_of(tools: str) -> list[str]:
    """The names of the functions in canonical tools or calls."""
    return [item["function"]["name"] for item in json.loads(tools)]


def _list(value: object, key: str, example: str) -> list[Any]:
    """The list, or the one in a string."""
    found = _decoded(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise RecordError(key, show(value), f"a list of functions, [{example}, …]; {left_out(key.rpartition('.')[2])}")
    return found


def _function(item: object, at: str) -> dict[str, Any]:
    """{"type": "function", …, "function": {"name", …}}"""
    expected = '{"type": "function", "function": {"name": "…", …}}'
    if not isinstance(item, dict) or item.get("type") not in ("function", None):
        found = show(item.get("type")) if isinstance(item, dict) else show(item)
        raise RecordError(f"{at}.type" if isinstance(item, dict) else at, found, expected)
    function = item["function"] if "function" in item else {k: v for k, v in item.items() if k not in ("type", "id")}
    if not isinstance(function, dict):
        raise RecordError(f"{at}.function", show(function), expected)
    name = function.get("name")
    if not isinstance(name, str):
        raise RecordError(f"{at}.function.name", show(name), "the function's name, a string")
    as_text(name, f"{at}.function.name", "the function's name, a string that is not empty")
    rest = {key: value for key, value in item.items() if key not in ("type", "function")} if "function" in item else {}
    identity = {"id": item["id"]} if "id" in item else {}
    return {"type": "function", **identity, **rest, "function": function}


def _arguments(value: object, key: str) -> dict[str, Any]:
    found = _decoded(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise RecordError(key, show(value), "a JSON object, or one in a string")
    return found


def _decoded(text: str) -> object:
    """The JSON value in a text, None where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json(value: object, key: str) -> str:
    """Canonical JSON of what a record holds."""
    if any(SURROGATE.search(text) or "\0" in text for text in strings(value)):
        raise RecordError(key, "a lone surrogate or a NUL character", "text: no tokenizer takes it; remove it")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise RecordError(key, "lists or objects nested too deeply", "at most some hundred levels") from None
    except TypeError:
        raise RecordError(key, "a value that JSON has no form for", "text, numbers, lists and objects") from None
    except ValueError:
        raise RecordError(key, "a number that JSON has no form for", "finite numbers of usual length") from None
