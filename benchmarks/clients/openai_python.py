"""The openai package: every route, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
from check import BASE, CHAT, KEY, MODEL, PERSON, URL, WEATHER, asked

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
SAY = [{"role": "user", "content": "Is it a good idea?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def chat(**more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": SAY, **GREEDY, **more})


def complete(**more: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": "Is it a good idea?", **GREEDY, **more})


def streamed_chat() -> bool:
    whole = chat().choices[0].message.content
    events = list(chat(stream=True, stream_options={"include_usage": True}))
    return (
        "".join(e.choices[0].delta.content or "" for e in events if e.choices) == whole and events[-1].usage is not None
    )


def logprobs() -> bool:
    content = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    text = b"".join(bytes(token.bytes) for token in content).decode()
    return text.strip().startswith(chat().choices[0].message.content.strip()[:4]) and len(content[0].top_logprobs) == 2


def lists() -> bool:
    one = [complete(prompt=p).choices[0].text for p in ("The", "Is it")]
    both = complete(prompt=["The", "Is it"])
    ids = complete(model=BASE, prompt=[[5, 6], [7, 8]])
    return [c.text for c in both.choices] == one and len(ids.choices) == 2


def echo() -> bool:
    choice = complete(model=BASE, prompt="The bus is late", echo=True, logprobs=1, max_tokens=0).choices[0]
    values = choice.logprobs.token_logprobs
    scored = len(values) > 2 and all(value < 0 for value in values[1:])
    return choice.text == "The bus is late" and values[0] is None and scored


def schema() -> bool:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    found = json.loads(chat(model=CHAT, response_format=wanted, max_tokens=64).choices[0].message.content)
    return set(found) == {"name", "age"}


def tool_calls() -> bool:
    message = chat(model=CHAT, tools=[WEATHER], tool_choice="required", max_tokens=64).choices[0].message
    [call] = message.tool_calls
    answered = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = chat(model=CHAT, messages=[*SAY, message, answered], tools=[WEATHER])
    return json.loads(call.function.arguments)["city"] in ("Bern", "Oslo") and after.choices[0].finish_reason != ""


def streamed_tool_calls() -> bool:
    named = {"type": "function", "function": {"name": "weather"}}
    events = list(chat(model=CHAT, tools=[WEATHER], tool_choice=named, max_tokens=64, stream=True))
    calls = [call for e in events for call in (e.choices[0].delta.tool_calls or ())]
    return json.loads("".join(call.function.arguments for call in calls))["city"] in ("Bern", "Oslo")


def response() -> bool:
    found = client.responses.create(model=CHAT, input="Is it a good idea?", max_output_tokens=16, temperature=0)
    with client.responses.stream(model=CHAT, input="Is it a good idea?", max_output_tokens=16, temperature=0) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return found.output_text == text and events[-1].type in ("response.completed", "response.incomplete")


def errors() -> bool:
    try:
        client.chat.completions.create(model="nothing", messages=SAY)
    except openai.NotFoundError as error:
        return error.code == "model_not_found" and "/" not in str(error.message)
    return False


def ways_to_sample() -> bool:
    extra = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "return_prompt": True}
    found = chat(temperature=0.8, seed=1, presence_penalty=0.5, logit_bias={"5": -100}, extra_body=extra)
    again = chat(temperature=0.8, seed=1, presence_penalty=0.5, logit_bias={"5": -100}, extra_body=extra)
    return found.choices[0].message.content == again.choices[0].message.content and found.prompts[0]["form"] == "pair"


asked("models", lambda: {MODEL, BASE, CHAT} <= {model.id for model in client.models.list()})
asked("chat", lambda: chat().usage.completion_tokens > 0)
asked("chat, streamed with usage", streamed_chat)
asked("n=3", lambda: [c.index for c in chat(n=3, temperature=1.0, seed=1).choices] == [0, 1, 2])
asked("logprobs, bytes of tokens", logprobs)
asked("completions: lists of texts and of token ids", lists)
asked("completions: echo, log-probabilities of the prompt", echo)
asked("sampling parameters and extensions, a seed repeats", ways_to_sample)
asked("response_format: json_schema", schema)
asked("tools: required call, its result", tool_calls)
asked("tools: named call, streamed", streamed_tool_calls)
asked("responses, whole and streamed", response)
asked("errors: NotFoundError", errors)
