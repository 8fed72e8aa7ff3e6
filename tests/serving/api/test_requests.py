"""What is requested is either done or refused by name."""

import pytest
from pydantic import ValidationError

from raytune_llm.data.records import Message
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.requests import NEUTRAL, ChatRequest, CompletionRequest

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
        ("n", 2),
        ("n", True),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("best_of", 3),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("echo", True),
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
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop": ["a", "x" * 1001]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"model": "\ud800"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
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
