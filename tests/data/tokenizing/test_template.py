"""The templates of real model families: their answers are found, or they are refused with the reason."""

import importlib.util
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raytune_llm.data.examples import IGNORED
from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.rendering import TemplateRefusal, render
from raytune_llm.data.tokenizing.template import NO_THINKING, supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError

FAMILIES = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations)), "chat_templates")
CHAT = tuple(
    Message(role, text)
    for role, text in zip(("user", "assistant") * 2, ("hello there", "hi my friend", "yes?", "no, no"), strict=True)
)
TURNS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '') }}{% endfor %}"
)
HEADER = "{{ 'assistant: ' if add_generation_prompt else '' }}"


def tokens(
    template: str, *, corpus: str = "hello there, hi my friend\n\nassistant: yes? no, no\n", splits: bool = True
) -> Tokens:
    """A small byte-level BPE that knows the template's special tokens; without `splits` it merges across words."""
    special = [
        s for s in re.findall(r"<[|｜]?[^<>\s{}'\"]{1,30}[|｜]?>", template) if "|" in s or "｜" in s or "turn" in s
    ]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(["<s>", "</s>", *special])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([corpus] * 3, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = template
    supply_template(wrapped)
    return Tokens(wrapped, max_tokens=None, is_encoder_decoder=False)


MADE = tokens(TURNS)


def learned(made: Tokens, messages: tuple[Message, ...]) -> list[str]:
    sequence = made.conversation(messages)
    text = made.tokenizer.decode([label if label != IGNORED else 0 for label in sequence.labels])
    return [run for run in text.split("<s>") if run]


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("cohere", "<|END_OF_TURN_TOKEN|>"),
        ("cohere2", "<|END_RESPONSE|>"),
        ("gemma", "<end_of_turn>"),
        ("gemma3", "<end_of_turn>"),
        ("gemma4", "<turn|>"),
        ("lfm2", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("llama3_1", "<|eot_id|>"),
        ("llama3_2", "<|eot_id|>"),
        ("nemotron_3_nano", "<|im_end|>"),
        ("phi3", "<|end|>"),
        ("phi3_5", "<|end|>"),
        ("qwen2_5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("qwen3_5_think", "<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_end|>"),
    ],
)
def test_families(family, end):
    made = tokens((FAMILIES / f"{family}.jinja").read_text())
    assert learned(made, CHAT) == [f"hi my friend{end}", f"no, no{end}"]
    assert made.stop_ids() == sorted({1, made.tokenizer.convert_tokens_to_ids(end)})
    sequence, prompt = made.conversation(CHAT), made.prompt(CHAT[:3])
    assert sequence.input_ids[: len(prompt)] == prompt and sequence.labels[len(prompt)] != IGNORED


def test_what_stands_between_prompt_and_answer_is_learned():
    made = tokens((FAMILIES / "gptoss.jinja").read_text())
    channel = "<|channel|>final<|message|>"
    assert learned(made, CHAT) == [f"{channel}hi my friend<|end|>", f"{channel}no, no<|return|>"]
    assert made.tokenizer.convert_ids_to_tokens(made.stop_ids()) == ["</s>", "<|end|>", "<|return|>"]


def test_without_a_generation_prompt_the_header_is_learned():
    assert learned(tokens(TURNS), CHAT) == ["assistant: hi my friend</s>", "assistant: no, no</s>"]


def test_thinking_is_off_unless_requested():
    source = (FAMILIES / "qwen3.jinja").read_text()
    made = tokens(source).tokenizer
    assert made.chat_template == NO_THINKING + source
    supply_template(made)
    assert made.chat_template == NO_THINKING + source, "supplied once"
    turns = [{"role": "user", "content": "hello"}]
    by_default = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    requested = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert by_default.endswith("assistant\n<think>\n\n</think>\n\n") and requested.endswith("assistant\n")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            (FAMILIES / "deepseek_r1_distill.jinja").read_text(),
            r"the last answer does not follow its prompt, which ends in .*<think>",
        ),
        ((FAMILIES / "glm4moe.jinja").read_text(), "an answer does not end in a special token such as {{ eos_token }}"),
        ((FAMILIES / "smolvlm.jinja").read_text(), "it changes the answer 'hi my friend'"),
        (TURNS.replace("eos_token", "'\\n'") + HEADER, "an answer does not end in a special token"),
        (TURNS.replace("m.content", "m.content | upper") + HEADER, "it changes the answer 'hi my friend'"),
        (TURNS + HEADER, "one token spans the end of a prompt and the answer"),
        (
            "{% for m in messages %}{{ loop.revindex ~ m.content + eos_token }}{% endfor %}",
            "the last answer does not follow its prompt|the text before an answer is not the text that prompts for it",
        ),
    ],
)
def test_templates_that_would_train_something_else_are_refused(template, reason):
    made = tokens(template)
    with pytest.raises(ValueError, match="the chat template can't be trained on: ") as caught:
        made.conversation(CHAT)
    assert re.search(reason.replace("{{ eos_token }}", re.escape("{{ eos_token }}")), str(caught.value))
    assert str(caught.value).endswith("; set model.chat_template to another")
    assert made.stop_ids() == [1], "such a template adds no stop token"


def test_an_answer_is_not_looked_for_in_later_turns():
    changed = "(m.content | upper if m.role == 'assistant' and not loop.last else m.content)"
    made = tokens(TURNS.replace("+ m.content +", f"+ {changed} +").replace("': '", "'|'") + HEADER.replace(": ", "|"))
    again = (*CHAT[:2], CHAT[2], CHAT[1])
    with pytest.raises(ValueError, match="it changes an answer"):
        made.conversation(again)


def test_tokens_that_change_with_what_follows_are_refused():
    """GPT-2's pattern keeps two line breaks together at the end of a text, but not before a word."""
    template = TURNS.replace("': '", "'\\n\\n'") + "{{ 'assistant\\n\\n' if add_generation_prompt else '' }}"
    made = tokens(template, corpus="yes\n\n")
    with pytest.raises(ValueError, match="the prompt is tokenized differently with its answer than without"):
        made.conversation(CHAT)


def test_merges_across_words_are_refused():
    made = tokens(
        TURNS.replace("': '", "':'") + "{{ 'assistant:' if add_generation_prompt else '' }}",
        corpus="t:no" * 50,
        splits=False,
    )
    with pytest.raises(ValueError, match="one token spans the end of a prompt and the answer"):
        made.conversation(CHAT)


def test_a_template_may_refuse_turns():
    made = tokens((FAMILIES / "gemma.jinja").read_text())
    with pytest.raises(TemplateRefusal) as caught:
        made.conversation((Message("system", "Be kind."), *CHAT))
    assert str(caught.value) == (
        "the chat template refuses a conversation of the turns [system, user, assistant, user, assistant]: "
        "System role not supported; write the turns as it expects them, or set model.chat_template"
    )
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}\n{{ m.role }",
            "at line 2, with the turns [user, assistant, user, assistant]: unexpected '}'",
        ),
        ("\n\n{% endfor %}", "at line 3, with the turns [user, assistant, user, assistant]: Encountered unknown tag"),
        (
            "\n{{ messages[9].content }}",
            "at line 2, with the turns [user, assistant, user, assistant]: list object has no",
        ),
        ("{{ m.role }}\n\n", "at line 1, with the turns [user, assistant, user, assistant]: 'm' is undefined"),
        (
            "{% for m in messages %}\n{{ m.content + 1 }}{% endfor %}",
            "at line 2, with the turns [user, assistant, user, assistant]: TypeError: can only concatenate str (not",
        ),
        (
            "{{ 1 / 0 }}",
            "at line 1, with the turns [user, assistant, user, assistant]: ZeroDivisionError: division by zero",
        ),
        (
            "{{ messages | nosuch }}",
            "at line 1, with the turns [user, assistant, user, assistant]: No filter named 'nosuch'",
        ),
        (
            "{{ (1).__class__.mro() }}",
            "at line 1, with the turns [user, assistant, user, assistant]: access to attribute",
        ),
        (
            "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}\n{{ f(0) }}",
            "at line 1, with the turns [user, assistant, user, assistant]: RecursionError: maximum recursion depth",
        ),
        (
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "at line 1, with the turns [user, assistant, user, assistant]: Over",
        ),
    ],
)
def test_errors_of_a_template_name_its_line(template, message):
    made = tokens(TURNS)
    made.tokenizer.chat_template = template
    with pytest.raises(InputError) as caught:
        made.conversation(CHAT)
    assert str(caught.value).startswith(f"the chat template has an error {message}")
    assert str(caught.value).endswith("; correct it, or set model.chat_template to another")
    assert str(caught.value).isprintable()


def test_a_refusal_is_printable_and_short():
    made = tokens("{{ raise_exception(messages[0].content) }}")
    with pytest.raises(TemplateRefusal) as caught:
        made.prompt((Message("user", "\x1b[31m\u202e" + "x" * 10_000),) * 30)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert str(caught.value).startswith(
        "the chat template refuses a conversation of the turns [user, user, user, user, user, user, user, user, …]: "
        "\\x1b[31m\\u202exxx"
    )


PIECES = [
    *("{{", "}}", "{%", "%}", "{#", "|", "+", "1", "'", "(", ")", "[0]", "\n"),
    *("m", "messages", ".content", "for", "in", "endfor", "if", "endif", "set", "=", "loop", "macro"),
    *("trim", "tojson", "eos_token", "raise_exception('no')", "range(3)"),
]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_any_template_renders_or_is_refused(template):
    made = MADE
    made.tokenizer.chat_template = template
    for use in (made.conversation, made.prompt):
        with suppress(InputError):
            use(CHAT[:2])


def test_an_empty_conversation_is_refused():
    with pytest.raises(InputError, match="the conversation has no turn; write at least a user turn"):
        tokens(TURNS).prompt(())


def test_a_template_is_needed_for_conversations():
    made = tokens(TURNS)
    made.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template; supply_template gives it one"):
        made.prompt(CHAT[:1])
    assert made.stop_ids() == [1]


def test_a_template_that_drops_the_system_turn_is_refused():
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    tokenizer = tokens(template).tokenizer
    turns = (Message("user", "a"), Message("assistant", "b"))
    assert render(tokenizer, turns, generation_prompt=False)
    with pytest.raises(InputError, match="chat template leaves out the system turn"):
        render(tokenizer, (Message("system", "be kind"), *turns), generation_prompt=False)
