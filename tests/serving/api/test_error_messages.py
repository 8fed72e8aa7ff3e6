"""What is wrong is described in plain words, by field: no names of validators, no addresses in memory."""

import json
import re

import pytest
from scripted import World
from test_app import error

INSIDES = re.compile(r"function-|\[int\]|0x|constrained|pydantic|Input should|Value error|literal|union|tagged", re.I)
MESSAGE = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ({"messages": 5}, "invalid_type", "messages", "messages: must be a list"),
        (
            {"messages": ["a"]},
            "invalid_type",
            "messages",
            "messages[0]: must be an object",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "invalid_type",
            "messages",
            'messages[0].content: must be a text, or a list of parts {"type": "text", "text": …}',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "invalid_value",
            "messages",
            "messages[0].content[0].type: must be 'text'",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "invalid_value",
            "messages",
            "messages[0].content: it contains a lone surrogate, which is no character",
        ),
        (
            {"messages": [{"role": "wizard", "content": "a"}]},
            "invalid_value",
            "messages",
            "messages[0].role: must be 'system', 'developer', 'user', 'assistant' or 'tool'",
        ),
        (
            {"messages": [{**MESSAGE, "colour": 1}]},
            "unknown_parameter",
            "messages",
            "unknown parameter: messages[0].colour",
        ),
        ({"stop": 5}, "invalid_type", "stop", "stop: must be a text or a list of up to 16 texts, none of them empty"),
        (
            {"tool_choice": "any"},
            "invalid_value",
            "tool_choice",
            'tool_choice: must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
        ),
        (
            {"response_format": {"type": "xml"}},
            "invalid_value",
            "response_format",
            "response_format: its type must be one of 'text', 'json_object', 'json_schema'",
        ),
        (
            {"response_format": {}},
            "invalid_value",
            "response_format",
            "response_format: must have a type",
        ),
        (
            {"response_format": "json"},
            "invalid_type",
            "response_format",
            "response_format: must be an object",
        ),
        ({"temperature": "hot"}, "invalid_type", "temperature", "temperature: must be a valid number"),
        ({"temperature": 3}, "invalid_value", "temperature", "temperature: must be less than or equal to 2"),
        ({"logit_bias": {"5": "a"}}, "invalid_type", "logit_bias", "logit_bias.5: must be a valid number"),
    ],
)
def test_messages_are_plain_and_name_the_field(world, body, code, param, message):
    content = json.dumps({"model": "m", "messages": [MESSAGE], **body})
    response = world.client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    found = error(response, 400, code, param)
    assert found == message and not INSIDES.search(found)


def test_a_model_that_is_not_served_is_404_without_paths(world):
    assert error(
        world.client.post("/v1/completions", json={"model": "x", "prompt": "a"}), 404, "model_not_found", "model"
    )
