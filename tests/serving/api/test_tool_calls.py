"""Calls of tools: rendered by the version's template, read from its answers in the form that the template writes."""

import json

import pytest
from scripted import CHATML, HERMES, LLAMA, World, tokens_with
from test_app import error, events

from raytune_llm.serving.api.tool_format import tool_format

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
BERN = {"name": "weather", "arguments": {"city": "Bern"}}
CALL = f"<tool_call>\n{json.dumps(BERN)}\n</tool_call>"
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Bern"}}'


def form(template):
    tokenizer = tokens_with(template).tokenizer
    return tool_format(tokenizer, tokenizer.chat_template)


def test_the_form_is_read_off_the_template():
    hermes, llama = form(HERMES), form(LLAMA)
    assert (hermes.opening, hermes.marker, hermes.end) == ("<tool_call>\n", "<tool_call>", "</tool_call>")
    assert (hermes.name_key, hermes.arguments_key, hermes.is_list) == ("name", "arguments", False)
    assert (llama.marker, llama.end, llama.name_key, llama.arguments_key) == ("", "", "name", "parameters")
    assert form(CHATML) is None
    listed = form(
        "{% for m in messages %}{% if m.tool_calls %}{{ '<|im_start|>[CALLS] ' }}[{% for c in m.tool_calls %}"
        "{{ c.function | tojson }}{% endfor %}]{{ '</s>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert listed.is_list and listed.marker == "[CALLS]" and listed.end == ""


@pytest.mark.parametrize(
    ("template", "text", "content", "calls"),
    [
        (HERMES, CALL, None, [BERN]),
        (HERMES, f"Let me see. {CALL}\n{CALL}", "Let me see.", [BERN, BERN]),
        (HERMES, "No need.", "No need.", []),
        (HERMES, "<tool_call>\n{broken", "<tool_call>\n{broken", []),
        (HERMES, CALL.replace("weather", "unknown"), CALL.replace("weather", "unknown"), []),
        (HERMES, "I write <tool_call> now", "I write <tool_call> now", []),
        (LLAMA, LLAMA_CALL, None, [BERN]),
        (LLAMA, f"{LLAMA_CALL}; {LLAMA_CALL}", None, [BERN, BERN]),
        (LLAMA, '{"name": "Bern"}', '{"name": "Bern"}', []),
        (LLAMA, "It is {sunny}", "It is {sunny}", []),
    ],
)
def test_calls_are_read_from_answers_whole_and_streamed(template, text, content, calls):
    world = World(text, template=template)
    ask = {"tools": [WEATHER, CLOCK], "messages": [{"role": "user", "content": "Bern?"}]}
    [choice] = world.chat(**ask).json()["choices"]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == (content, "tool_calls" if calls else "stop")
    made = [call["function"] for call in message.get("tool_calls", [])]
    assert [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in made] == calls
    assert len({call["id"] for call in message.get("tool_calls", [])}) == len(calls)
    found, is_done = events(world.chat(**ask, stream=True))
    choices = [event["choices"][0] for event in found]
    deltas = [choice["delta"] for choice in choices]
    assert is_done and "".join(delta.get("content") or "" for delta in deltas).rstrip() == (content or "")
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"]) for call in streamed] == list(enumerate(made))
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
        "tool_calls" if calls else "stop"
    ]


def test_parallel_calls_can_be_switched_off():
    world = World(f"{CALL}\n{CALL}", template=HERMES)
    assert (
        len(world.chat(tools=[WEATHER], parallel_tool_calls=False).json()["choices"][0]["message"]["tool_calls"]) == 1
    )


def test_tools_calls_and_results_are_rendered():
    world = World("sunny", template=HERMES)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    turns = [
        {"role": "user", "content": "Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]
    assert world.chat(messages=turns, tools=[WEATHER]).status_code == 200
    [prompt] = world.prompts()
    assert '"description": "The weather of a place"' in prompt and CALL in prompt
    assert "<tool_response>\nsun\n</tool_response>" in prompt


def test_tool_choice_none_shows_no_tools():
    world = World(CALL, template=HERMES)
    message = world.chat(tools=[WEATHER], tool_choice="none").json()["choices"][0]["message"]
    assert message["content"] == CALL and "tool_calls" not in message
    assert "<tools>" not in world.prompts()[0]


@pytest.mark.parametrize(
    ("choice", "names", "finish"),
    [
        ("required", ["weather", "clock"], "tool_calls"),
        ({"type": "function", "function": {"name": "weather"}}, ["weather"], "stop"),
    ],
)
def test_a_required_call_is_constrained_and_begun(choice, names, finish):
    for template, text, opening in ((HERMES, json.dumps(BERN), "<tool_call>\n"), (LLAMA, LLAMA_CALL, "")):
        world = World(text, template=template)
        body = world.chat(tools=[WEATHER, CLOCK], tool_choice=choice).json()["choices"][0]
        assert body["finish_reason"] == finish and body["message"]["content"] is None
        assert json.loads(body["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Bern"}
        [(_, sampling)] = world.engine.asked
        assert (world.prompts()[0].endswith(opening) and "<tools>" in world.prompts()[0]) or template is LLAMA
        schema = json.loads(sampling.json_schema)
        found = schema.get("anyOf", [schema])
        assert [each["properties"]["name"]["const"] for each in found] == names
        arguments = "arguments" if template is HERMES else "parameters"
        assert found[0]["properties"][arguments] == WEATHER["function"]["parameters"]
        assert found[0]["required"] == ["name", arguments] and found[0]["additionalProperties"] is False


def test_definitions_of_several_tools_dont_mix():
    def tool(name, kind):
        parameters = {"$defs": {"X": {"type": kind}}, "type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}}
        return name, parameters

    schema = json.loads(form(HERMES).schema([tool("a", "string"), tool("b", "integer")]))
    assert schema["$defs"] == {"tool0_X": {"type": "string"}, "tool1_X": {"type": "integer"}}
    found = [each["properties"]["arguments"]["properties"]["x"]["$ref"] for each in schema["anyOf"]]
    assert found == ["#/$defs/tool0_X", "#/$defs/tool1_X"]


def test_a_template_without_tools_and_wrong_choices_are_refused():
    plain, hermes = World(template=CHATML), World(template=HERMES)
    message = error(plain.chat(tools=[WEATHER]), 400, "unsupported_parameter", "tools")
    assert message.startswith("the chat template of m has no place for tools, so that the model would never see them;")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    called = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    assert "no place for tool calls" in error(plain.chat(messages=called), 400, "unsupported_parameter", "messages")
    assert plain.chat(tools=[WEATHER], tool_choice="none").status_code == plain.chat(tools=[]).status_code == 200
    named = {"type": "function", "function": {"name": "nothing"}}
    assert "a call of nothing, which is not in tools" in error(
        hermes.chat(tools=[WEATHER], tool_choice=named), 400, "invalid_value", "tool_choice"
    )
    error(hermes.chat(tool_choice="required"), 400, "invalid_value", "tool_choice")
    assert "the same name" in error(hermes.chat(tools=[WEATHER, WEATHER]), 400, "invalid_value", "tools")
    both = {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}}
    assert "can't be combined" in error(hermes.chat(**both), 400, "invalid_value", "tools")
    assert "tools is not offered" in error(hermes.complete(tools=[WEATHER]), 400, "unsupported_parameter", "tools")


def test_schemas_and_arguments_that_are_nested_too_deep_are_refused():
    def nested(levels, inside):
        for _ in range(levels):
            inside = {"type": "object", "properties": {"a": inside}}
        return inside

    hermes = World(json.dumps({"name": "weather", "arguments": {}}), template=HERMES)

    def ask(levels):
        function = {"name": "weather", "parameters": nested(levels, {"type": "null"})}
        return hermes.chat(tools=[{"type": "function", "function": function}], tool_choice="required")

    assert ask(90).status_code == 200
    message = "tools[0].function.parameters: it is nested in more than 200 levels; use $defs and $ref"
    assert error(ask(101), 400, "invalid_value", "tools") == message
    assert error(ask(400), 400, "invalid_value", "tools") == message
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": nested(101, {})}}
    assert "nested" in error(hermes.chat(response_format=schema), 400, "invalid_value", "response_format")
    asked = {"type": "json_schema", "name": "a", "schema": nested(101, {})}
    assert "nested" in error(hermes.post("responses", input="a", text={"format": asked}), 400, "invalid_value", "text")
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(nested(400, {}))}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    assert error(hermes.chat(messages=turns), 400, "invalid_value", "messages") == (
        "messages[1].tool_calls[0].function.arguments: they are nested in more than 200 levels"
    )
