"""Tools, calls of them and results in the text that a base is trained on: rendered by its template, or refused."""

import json

import pytest
from example_records import WITH_TOOLS
from test_template import CHAT, FAMILIES, TURNS, learned, tokens

from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.examples import IGNORED
from raytune_llm.data.records import Chat, Message
from raytune_llm.data.tokenizing.template import PLAIN_TEMPLATE
from raytune_llm.errors import InputError

QWEN = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = "{% for call in m.tool_calls or [] %}"
MESSAGES = parse(WITH_TOOLS, (Chat,)).messages
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'


def test_loss_on_calls_and_answers_but_not_on_results():
    made = tokens(QWEN)
    assert learned(made, MESSAGES) == [
        f"<tool_call>{CALL}</tool_call><|im_end|>",
        f"Let me see.<tool_call>{CALL}</tool_call><|im_end|>",
    ]
    all_learned = tuple(Message(m.role, m.content, m.tool_calls, m.call_id, tools=m.tools) for m in MESSAGES)
    assert learned(made, all_learned)[1] == "No rain.<|im_end|>"
    text = made.tokenizer.decode(made.conversation(MESSAGES).input_ids)
    assert json.dumps(WITH_TOOLS["tools"][0]) in text and "<|im_start|>tool\ndry<|im_end|>" in text


def test_what_is_prompted_is_what_was_trained_on():
    made = tokens(QWEN)
    ids, labels = made.conversation(MESSAGES).input_ids, made.conversation(MESSAGES).labels
    for i in (2, 6):
        prompt = made.prompt(MESSAGES[:i])
        assert ids[: len(prompt)] == prompt and labels[len(prompt) - 1] == IGNORED != labels[len(prompt)]


@pytest.mark.parametrize(
    ("family", "calls"),
    [
        ("qwen2_5", [f"<tool_call>\n{CALL}\n</tool_call><|im_end|>"]),
        ("qwen3", [f"<tool_call>\n{CALL}\n</tool_call><|im_end|>"]),
        ("lfm2_2_5", ["<|tool_call_start|>[weather(city='Rome')]<|tool_call_end|><|im_end|>"]),
        ("llama3_1", ['{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>']),
        (
            "gptoss",
            [' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'],
        ),
    ],
)
def test_families_with_tools(family, calls):
    made = tokens((FAMILIES / f"{family}.jinja").read_text())
    found = learned(made, (*MESSAGES[:4], Message("assistant", "No rain.")))
    assert found[:-1] == calls and "No rain." in found[-1]
    assert learned(made, MESSAGES[:3]) == calls, "as the last turn"


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        (PLAIN_TEMPLATE, MESSAGES, "tools"),
        (TURNS, MESSAGES, "tools"),
        ((FAMILIES / "gemma.jinja").read_text(), MESSAGES[1:], "tool calls"),
        (QWEN.replace(CALLS, "{% for call in [] %}"), MESSAGES[1:], "tool calls"),
        (QWEN.replace("call.function |", "call.function.name |"), MESSAGES[1:], "tool calls"),
        (PLAIN_TEMPLATE, (*CHAT[:2], Message("tool", "dry"), CHAT[1]), "the results of tools"),
        (QWEN.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"), MESSAGES[1:], "the results of tools"),
    ],
)
def test_templates_that_leave_tools_out_are_refused(template, messages, what):
    made = tokens(template)
    for use in (made.conversation, made.prompt):
        with pytest.raises(InputError) as caught:
            use(messages)
        assert str(caught.value) == (
            f"the base's chat template doesn't render {what}, so that the model would never see them; take a base "
            "whose template does, or set model.chat_template; or data.on_error=skip leaves such records out"
        )


def test_tools_that_are_never_called_may_be_left_out():
    with pytest.raises(InputError) as caught:
        tokens(TURNS).prompt((Message("user", "Hi", tools=MESSAGES[0].tools),))
    assert str(caught.value).endswith("or set model.chat_template; or data.ignore=[tools] leaves them out")


FAULTY = {
    "unknown filter": (
        QWEN.replace("tool | tojson", "tool | tojsn"),
        MESSAGES,
        "the chat template has an error at line 2, with the turns [system, user, assistant, tool, assistant, "
        "user, assistant]: No filter named 'tojsn'; correct it, or set model.chat_template to another",
    ),
    "of tools": (
        QWEN.replace("tool | tojson", "tool.nothing.name"),
        MESSAGES,
        "the chat template has an error at line 2, with the turns [system, user, assistant, tool, assistant, "
        "user, assistant]: 'dict object' has no attribute 'nothing'; correct it, or set model.chat_template to "
        "another",
    ),
    "of calls": (
        QWEN.replace("call.function |", "call.nothing.name |"),
        MESSAGES[1:],
        "the chat template has an error at line 5, with the turns [user, assistant, tool, assistant, user, "
        "assistant]: 'dict object' has no attribute 'nothing'; correct it, or set model.chat_template to another",
    ),
    "of other tools": (
        QWEN.replace("tool | tojson", "(tool | tojson) + ('' if 'probe' not in tool.function.name else 1)"),
        MESSAGES,
        "the base's chat template doesn't render tools (it has an error at line 2: TypeError: can only concatenate str "
        '(not "int") to str), so that the model would never see them; take a base whose template does, or set '
        "model.chat_template; or data.on_error=skip leaves such records out",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_an_error_of_a_template_is_named_with_its_line(name):
    template, messages, message = FAULTY[name]
    with pytest.raises(InputError) as caught:
        tokens(template).conversation(messages)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (QWEN.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}"), "it leaves out the text of an answer"),
        (QWEN.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}"), "an answer does not end in a special token"),
        (
            QWEN.replace("</tool_call>{% endfor %}", "</tool_call>{% endfor %}{{ '!' if loop.last and m.tool_calls }}"),
            "it renders tool calls differently once turns follow them",
        ),
    ],
)
def test_calls_that_would_be_trained_otherwise_are_refused(template, reason):
    made = tokens(template)
    with pytest.raises(InputError, match=reason):
        made.conversation(MESSAGES)


def test_the_tools_stay_when_the_oldest_exchange_goes():
    made = tokens(QWEN)
    first, *rest = MESSAGES[1:6]
    prompt = (Message("user", "long " * 50, tools=MESSAGES[0].tools), *rest)
    short = made.prompt((Message("user", "And?", tools=MESSAGES[0].tools),))
    made.max_tokens = len(short) + 8
    assert made.prompt(prompt, max_new_tokens=8) == short and first.role == "user"


def test_encoder_decoder_bases_learn_no_calls():
    made = tokens(QWEN)
    made.is_encoder_decoder = True
    with pytest.raises(InputError, match="an encoder-decoder base can't learn an answer that calls tools"):
        made.conversation(MESSAGES)


def test_turns_without_loss():
    made = tokens(QWEN)
    first = (CHAT[0], Message("assistant", "hi my friend", learn=False), *CHAT[2:])
    assert learned(made, first) == ["no, no<|im_end|>"]
    assert made.conversation(first).input_ids == made.conversation(CHAT).input_ids
    last = (*CHAT[:3], Message("assistant", "no, no", learn=False))
    assert made.conversation(last) == made.conversation(CHAT[:2]), "what follows the last learned turn is left out"
    with pytest.raises(InputError, match="the conversation has no assistant turn to learn"):
        made.conversation((CHAT[0], first[1]))
