"""General prompts: the embedded ones, and those of data.guard in whatever form records have."""

import pytest
from worlds import tokenizer

from raytune_llm.data.guard import GENERAL, guard_prompts
from raytune_llm.data.reading.problems import DataError
from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens

FEWEST = 32


def tokens_of(template=None):
    words = tokenizer()
    words.chat_template = template
    supply_template(words)
    return Tokens(words, max_tokens=128, is_encoder_decoder=False)


def written(folder, text):
    file = folder / "guard.jsonl"
    file.write_text(text)
    return str(file)


def test_the_embedded_prompts_are_different_ones_and_turns_where_the_base_has_a_template():
    plain = guard_prompts(None, tokens_of())
    assert len(set(plain)) == len(plain) == len(GENERAL.read_text().splitlines()) >= FEWEST
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    assert guard_prompts(None, tokens_of(template)) == [(Message("user", prompt),) for prompt in plain]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n', ["a", "b"]),
        ('{"input_text": "a", "output_text": "b"}\n', ["a"]),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', [(Message("user", "a"),)]),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
            [(Message("user", "a"),)],
        ),
    ],
)
def test_ones_own_prompts_come_with_answers_or_without(tmp_path, lines, expected):
    assert guard_prompts(written(tmp_path, lines), tokens_of()) == expected


def test_what_is_no_prompt_is_named_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"guard\.jsonl:2: column 10: not JSON"):
        guard_prompts(written(tmp_path, '{"prompt": "a"}\n{"prompt"\n'), tokens_of())
    with pytest.raises(DataError, match=r"absent\.jsonl \(data\.guard\)"):
        guard_prompts(str(tmp_path / "absent.jsonl"), tokens_of())
