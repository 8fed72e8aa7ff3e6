"""What is requested is either done or refused by name."""

import json

import pytest
from pydantic import ValidationError

from raytune_llm.data.records import Message
from raytune_llm.serving.api.chat_requests import ChatRequest
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.requests import NEUTRAL, CompletionRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def chat(**more):
    request = ChatRequest.model_validate({**CHAT, **more})
    request.check()
    return request


def text(**more):
    request = CompletionRequest.model_validate({**TEXT, **more})
    request.check()
    return request


def test_defaults_are_openais():
    sampling = chat().sampling(max_tokens=5)
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (1.0, 1.0, None, ())
    assert sampling.max_tokens == 5
    assert sampling.num_logprobs is None


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NEUTRAL.items() for value in (None, *values)]
)
def test_values_that_ask_for_nothing_are_taken(name, value):
    chat(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", True),
        ("suffix", "x"),
        ("functions", [{}]),
        ("audio", {}),
        ("reasoning_effort", "low"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(name, value):
    for ask in (chat, text):
        with pytest.raises(ApiError, match=f"{name} is not offered") as refusal:
            ask(**{name: value})
        assert (refusal.value.status, refusal.value.param, refusal.value.code) == (400, name, "unsupported_parameter")


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ApiError, match="unknown parameter: temprature") as refusal:
        chat(temprature=0)
    assert refusal.value.code == "unknown_parameter"


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"stop": [""]}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop": ["a", "x" * 1001]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"model": "\ud800"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stream_options": {"include": 1}}, "stream_options"),
    ],
)
def test_wrong_types_and_values_name_their_field(more, where):
    with pytest.raises(ValidationError) as refusal:
        chat(**more)
    assert {error["loc"][0] for error in refusal.value.errors()} == {where}


def test_options_that_need_each_other():
    for ask, more in (
        (chat, {"top_logprobs": 2}),
        (chat, {"stream_options": {}}),
        (chat, {"max_tokens": 1, "max_completion_tokens": 2}),
    ):
        with pytest.raises(ApiError):
            ask(**more)
    assert chat(max_completion_tokens=4).answer_tokens == 4
    assert chat(logprobs=True).num_logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).num_logprobs == 3
    assert text(logprobs=0).num_logprobs == 0


def test_parts_are_joined_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}])
    assert request.prompt == (Message("system", "s"), Message("user", "ab"))


def test_zero_top_p_is_greedy():
    sampling = text(top_p=0, temperature=1.5, stop="x").sampling(1)
    assert (sampling.temperature, sampling.top_p, sampling.stop) == (0.0, 1.0, ("x",))


def test_tiny_temperatures_are_greedy():
    for temperature in (0, 1e-307, 5e-324, 9e-6):
        assert chat(temperature=temperature).sampling(1).temperature == 0
    assert chat(temperature=1e-4).sampling(1).temperature == 1e-4


def test_ways_to_sample():
    sampling = chat(
        top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-0.5, repetition_penalty=1.2, ignore_eos=True, seed=3
    ).sampling(1, place=2)
    assert (sampling.top_k, sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (5, 0.1, 1, -0.5)
    assert (sampling.repetition_penalty, sampling.ignore_eos, sampling.seed) == (1.2, True, 5)
    assert [chat(top_k=k).sampling(1).top_k for k in (-1, 0, None)] == [None] * 3
    assert text(logit_bias={"5": -100, "7": 1.5}).sampling(1, vocabulary_size=8).logit_bias == ((5, -100), (7, 1.5))
    for wrong in ("8", "-1", "five", "²"):
        with pytest.raises(ApiError, match=r"logit_bias: .* is no token id of this model, 0 to 7"):
            text(logit_bias={wrong: 1}).sampling(1, vocabulary_size=8)


def test_response_formats_are_schemas():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"name": "x", "schema": schema, "strict": True, "description": "d"}
    assert json.loads(chat(response_format={"type": "json_schema", "json_schema": named}).json_schema) == schema
    assert chat(response_format={"type": "json_object"}).sampling(1).json_schema == '{"type": "object"}'
    assert text(response_format={"type": "text"}).sampling(1).json_schema is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], r"messages\[0\].content: a message of role user has a content"),
        (
            [{"role": "tool", "content": "x"}],
            r"messages\[0\].tool_call_id: a message of role tool has the id of its call",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]}],
            r"messages\[0\].tool_calls\[0\].function.arguments: must be the text of a JSON object",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]}],
            r"messages\[0\].tool_calls: only messages of role assistant have them",
        ),
    ],
)
def test_messages_are_complete(messages, message):
    with pytest.raises(ApiError, match=message) as refusal:
        chat(messages=messages)
    assert refusal.value.param == "messages"


def test_messages_of_answers_are_taken_back():
    """As clients send them: with every field of the message that they received."""
    empty = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "tool_calls": None, **empty},
        {"role": "assistant", "content": None, "tool_calls": [call], **empty},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
    ]
    prompt = chat(messages=turns).prompt
    assert prompt[1] == Message("assistant", "a")
    assert json.loads(prompt[2].tool_calls)[0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert prompt[3] == Message("tool", "r", call_id="c1", name="f")


def test_what_clients_add_to_messages_is_taken_and_not_used():
    cache = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be kind.", **cache}]},
        {"role": "user", "content": "hi", **cache},
        {"role": "assistant", "content": None, "tool_calls": [], "reasoning_content": "Hm."},
        {"role": "user", "content": "and?"},
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    found = chat(messages=turns, tools=[{**tool, **cache}]).prompt
    plain = [{**turn, "content": turn["content"] or ""} for turn in turns]
    plain[0]["content"] = "Be kind."
    expected = [Message(turn["role"], turn["content"]) for turn in plain]
    assert [*found] == [Message("system", "Be kind.", tools=json.dumps([tool])), *expected[1:]]
    with pytest.raises(ApiError, match=r"messages\[0\].content: a message of role assistant has a content"):
        chat(messages=[{"role": "assistant"}])


@pytest.mark.parametrize(
    ("more", "num_errors", "message"),
    [
        ({"messages": [{}] * 100_000}, 2, "Field required"),
        ({"messages": CHAT["messages"] * 4097}, 1, "at most 4096 items"),
        ({"messages": [{"role": "user", "content": [{}] * 100_000}]}, 3, "Field required"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * 100_000}]}, 2, "Field required"),
        ({"tools": [{}] * 100_000}, 2, "Field required"),
    ],
)
def test_long_lists_are_not_validated_to_their_end(more, num_errors, message):
    with pytest.raises(ValidationError, match=message) as refusal:
        ChatRequest.model_validate({**CHAT, **more})
    assert refusal.value.error_count() <= num_errors
