"""/v1/responses in its basic form: bodies and events as OpenAI's clients read them, nothing stored."""

import json

from openai.types.responses import Response, ResponseErrorEvent
from pydantic import TypeAdapter
from scripted import World
from test_app import error

from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Busy, Delta

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def sent(response):
    """Names and contents of server-sent events."""
    pairs = [block.split("\n") for block in response.text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_a_text_is_answered_whole():
    world = World(" fine ")
    body = world.post("responses", input="hi", instructions="Be kind.", metadata={"a": "b"}, max_output_tokens=9).json()
    response = Response.model_validate(body, strict=False)
    assert response.output_text == "fine " and response.status == "completed" and body["store"] is False
    assert body["usage"]["input_tokens"] == len(world.engine.asked[0][0])
    assert (body["metadata"], body["instructions"]) == ({"a": "b"}, "Be kind.")
    assert world.prompts() == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ]
    [(_, sampling)] = world.engine.asked
    assert (sampling.max_tokens, sampling.temperature, sampling.stream) == (9, 1.0, False)


def test_messages_and_earlier_output_are_taken():
    world = World("fine")
    earlier = world.post("responses", input="hi").json()["output"][0]
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        earlier,
        {"role": "user", "content": "b"},
    ]
    assert world.post("responses", input=turns).status_code == 200
    assert world.prompts()[1].startswith(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n<|im_start|>user\nb"
    )


def test_a_stream_has_openais_events_in_their_order():
    world = World("fine day")
    found = sent(world.post("responses", input="hi", stream=True, temperature=0))
    assert [name for name, _ in found] == [event["type"] for _, event in found]
    assert list(dict.fromkeys(name for name, _ in found)) == EVENTS
    assert [event["sequence_number"] for _, event in found] == list(range(len(found)))
    text = "".join(event["delta"] for name, event in found if name == "response.output_text.delta")
    done = next(event for name, event in found if name == "response.output_text.done")
    assert text == done["text"] == TypeAdapter(Response).validate_python(found[-1][1]["response"]).output_text


def test_formats_are_schemas():
    world = World("{}")
    schema = {"type": "object", "properties": {}}
    world.post("responses", input="hi", text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    world.post("responses", input="hi", text={"format": {"type": "json_object"}})
    assert [json.loads(sampling.json_schema) for _, sampling in world.engine.asked] == [schema, {"type": "object"}]


def test_what_needs_storage_and_what_is_not_offered_is_refused_by_name():
    world = World()
    stored = "is not offered by this endpoint, which stores no responses; leave it out"
    for name, value in (("store", True), ("previous_response_id", "resp_1"), ("background", True)):
        assert error(world.post("responses", input="hi", **{name: value}), 400, "unsupported_parameter", name) == (
            f"{name} {stored}"
        )
    tools = [{"type": "web_search"}]
    error(world.post("responses", input="hi", tools=tools), 400, "unsupported_parameter", "tools")
    error(world.post("responses", input="hi", colour=1), 400, "unknown_parameter", "colour")
    error(world.post("responses", input=[]), 400, "invalid_type", "input")
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    error(world.post("responses", input=image), 400, "invalid_value", "input")
    error(world.post("responses", input="hi", model="x"), 404, "model_not_found", "model")
    assert world.post("responses", input="hi", store=False, tools=[], truncation="disabled").status_code == 200


def test_an_error_in_a_stream_is_an_event():
    world = World(refuses="no such schema")
    found = sent(world.post("responses", input="hi", stream=True))
    name, event = found[-1]
    assert name == event["type"] == "error" and event["message"] == "no such schema"


def test_an_error_in_a_stream_is_an_event_in_its_sequence_whatever_its_kind():
    for raised, status, code in (
        (KeyError("x"), 500, "internal_error"),
        (InputError("no room"), 400, "invalid_value"),
        (Busy("16 schemas"), 503, "overloaded"),
    ):
        world = World("fine")
        world.service.generate = failing(raised)
        found = sent(world.post("responses", input="hi", stream=True))
        assert [event["sequence_number"] for _, event in found] == [*range(len(found))]
        name, event = found[-1]
        assert (name, event["type"], event["code"]) == ("error", "error", code)
        assert ResponseErrorEvent.model_validate(event).message
        chat = world.chat(stream=True).text.split("\n\n")
        assert json.loads(chat[-2].removeprefix("data: "))["error"]["code"] == code
        assert world.chat().status_code == status
        metrics = world.client.get("/metrics").text
        assert f'raytune_llm_requests_total{{model="m",outcome="{status}",replica="r"}} 3.0' in metrics


def test_long_inputs_are_refused_and_verbosity_is_taken():
    world = World("fine")
    message = {"role": "user", "content": "a"}
    refused = world.post("responses", input=[message] * 4096)
    assert error(refused, 400, "invalid_value", "input") == "input: must have at most 4095 items"
    assert error(world.chat(messages=[message] * 4097), 400, "invalid_value", "messages") == (
        "messages: must have at most 4096 items"
    )
    assert world.post("responses", input=[message] * 4095, instructions="Be kind.").status_code == 200
    body = world.post("responses", input="hi", text={"verbosity": "low"}).json()
    assert body["text"] == {"format": {"type": "text"}}
    error(world.post("responses", input="hi", text={"verbosity": "loud"}), 400, "invalid_value", "text")


def failing(error):
    """An engine's `generate` that fails after its first token."""

    async def generate(model, prompt, sampling, client):
        yield Delta("a", 1)
        raise error

    return generate
