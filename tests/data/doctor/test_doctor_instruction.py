"""What most prompts have in common."""

import pytest

from raytune_llm.data.doctor.instruction import Instruction, find_instruction
from raytune_llm.data.records import Chat, Message, Supervised


@pytest.mark.parametrize(
    ("prompts", "start", "end"),
    [
        (["Say it now: a", "Say it now: b"], "Say it now:", ""),
        (["Say it a", "Say it b"], "", ""),
        ([*(f"Say it now: {i}" for i in range(9)), "what"], "Say it now:", ""),
        (["Say it now: a", "Say it now: b", "c", "d"], "", ""),
        ([f"Say it now: {i} in one word" for i in range(9)], "Say it now:", "in one word"),
        ([f"{i}\nin one word only" for i in range(9)], "", "in one word only"),
        (["the very same prompt"] * 5, "the very same prompt", ""),
        (["only one prompt"], "", ""),
    ],
)
def test_words_around_what_differs(prompts, start, end):
    found = find_instruction([Supervised(prompt, "x") for prompt in prompts])
    assert found == Instruction((tuple(start.split()),) if start else (), (tuple(end.split()),) if end else ())


def test_several_instructions():
    prompts = [f"Rewrite this text: {i}" for i in range(60)] + [f"Answer the question. Context: {i}" for i in range(40)]
    found = find_instruction([Supervised(prompt, "x") for prompt in prompts])
    assert found.starts == (("Rewrite", "this", "text:"), ("Answer", "the", "question.", "Context:"))
    assert found.without("Answer the question. Context: a b") == "a b" and found.start_of("Rewrite this") == ""
    assert found.start_of("Rewrite this text: a") == "Rewrite this text:"
    various = prompts[:30] + [f"{i} is a number of its own" for i in range(30)]
    assert find_instruction([Supervised(prompt, "x") for prompt in various]).starts == ()


def test_without_it():
    instruction = Instruction((("Say", "it"),), (("one", "word"),))
    assert instruction.without("Say it\n blue sky\n in one word") == "blue sky in"
    assert instruction.without("blue  sky") == "blue sky" and Instruction().without("blue  sky") == "blue  sky"


def test_the_system_turn_of_conversations_is_left_out():
    chats = [
        Chat((Message("system", "You are good."), Message("user", f"{i} please"), Message("assistant", "x")))
        for i in range(9)
    ]
    assert find_instruction(chats) == Instruction()
