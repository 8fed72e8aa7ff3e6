"""How preferences are written: two answers to one prompt, one of them preferred.

{"input_text", "candidate_0", "candidate_1", "choice": 0 or 1}
{"prompt", "chosen", "rejected"}                            TRL; plain text or turns
{"chosen": [turns], "rejected": [turns]}                    TRL; the turns that both begin with are the prompt
{"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected"}      HH-RLHF; the same in plain text
{"input": {"messages", "tools"?}, "preferred_output": [turns], "non_preferred_output": [turns]}        OpenAI
{"contents", "completions": [{"score": 1, "completion": {"role", "parts"}}, {"score": 0, …}]}           Vertex AI
"""

from __future__ import annotations

import re
from dataclasses import replace

from raytune_llm.data.dialects.turns import GEMINI, conversation, parse_parts, parse_turn, parse_turns
from raytune_llm.data.dialects.values import EXPECTED, Row, as_text, left_out
from raytune_llm.data.records import Message, Preference, Prompt, RecordError, Text, show

HUMAN_OR_ASSISTANT = re.compile(r"\n\n(Human|Assistant):")


def side(row: Row, key: str, role: str) -> tuple[Message, ...]:
    """The turns under `key`, a plain string being one turn of `role`."""
    if isinstance(row[key], list):
        return parse_turns(row, row[key], key, is_answer=role == "assistant")
    return (Message(role, row.text(key)),)


def answer_turns(turns: tuple[Message, ...], key: str) -> tuple[Message, ...]:
    """The turns, checked to be an answer. Raises RecordError where they don't begin and end with an assistant turn."""
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        found = f"turns by {', '.join(turn.role for turn in turns[:8])}" if turns else "no turns after the prompt's"
        raise RecordError(key, found, "an answer, which begins and ends with an assistant turn")
    return turns


def _whole_answer(turns: tuple[Message, ...], key: str) -> tuple[Message, ...]:
    """`answer_turns`, of which each counts: an answer is preferred as a whole."""
    if not all(turn.learn for turn in turns):
        raise RecordError(key, "a turn with weight 0 or train false", "an answer that counts whole")
    return answer_turns(turns, key)


def prompt_turns(turns: tuple[Message, ...], key: str) -> Prompt:
    """A prompt of turns. Raises RecordError where nothing is left to answer."""
    if turns[-1].role not in ("user", "tool"):
        raise RecordError(key, f"a last turn by {turns[-1].role}", "a conversation that ends in a user turn")
    return Prompt(turns)


def gemini_turns(row: Row) -> tuple[Message, ...]:
    """Gemini's form: contents with role and parts, the system prompt apart."""
    turns = parse_turns(row, row["contents"], "contents", GEMINI)
    name = "systemInstruction" if "systemInstruction" in row else "system_instruction"
    if name not in row:
        return turns
    if turns[0].role == "system":
        raise RecordError("contents[0].role", "a system turn", f"only one: there is {name} already")
    system = row[name]
    if isinstance(system, str):
        return (Message("system", as_text(system, name, "a string that is not empty")), *turns)
    parts = system.get("parts") if isinstance(system, dict) else system
    return (Message("system", parse_parts(row, parts, f"{name}.parts")), *turns)


def candidates(row: Row) -> Preference:
    """input_text, candidate_0, candidate_1 and the number of the better one."""
    prompt, *answers = row.texts("input_text", "candidate_0", "candidate_1")
    choice = row["choice"]
    if type(choice) is not int or choice not in (0, 1):
        raise RecordError("choice", show(choice), EXPECTED["choice"])
    return replace(_preference(prompt, answers[choice], answers[1 - choice], "candidate_1"), place=choice)


def chosen_rejected(row: Row) -> Preference:
    """Plain, or conversational; answers that repeat the prompt's turns, as some data sets have them, lose them."""
    keys = ("prompt", "chosen", "rejected")
    if "margin" in row:
        expected = f"no margin: no method here uses by how much an answer is better; {left_out('margin')}"
        raise RecordError("margin", show(row["margin"]), expected)
    if not any(isinstance(row[key], list) for key in keys) and row.get("system") is row.get("tools") is None:
        text, good, bad = row.texts(*keys)
        return _preference(text, good, bad, "rejected")
    prompt = side(row, "prompt", "user")
    prompt_turns(prompt, "prompt")

    def answer(key: str) -> tuple[Message, ...]:
        turns = side(row, key, "assistant")
        repeated = turns[: len(prompt)] == prompt and len(turns) > len(prompt)
        return _whole_answer(turns[len(prompt) :] if repeated else turns, key)

    chosen, rejected = answer("chosen"), answer("rejected")
    return _preference(conversation(row, prompt, "prompt"), chosen, rejected, "rejected")


def implicit_prompt(row: Row) -> Preference:
    """The prompt is the turns that chosen and rejected begin with, up to an assistant turn of each."""
    both = [_whole(row, key) for key in ("chosen", "rejected")]
    if both[0] == both[1]:
        return _preference((), both[0], both[1], "rejected")
    shared = next((i for i, (one, other) in enumerate(zip(*both, strict=False)) if one != other), min(map(len, both)))
    while shared and any(len(turns) == shared or turns[shared].role != "assistant" for turns in both):
        shared -= 1
    if not shared:
        expected = "turns that begin as those of chosen do, up to an answer; or a key prompt"
        raise RecordError("rejected", "no turns in common with chosen before an answer", expected)
    prompt = both[0][:shared]
    prompt_turns(prompt, "chosen")
    chosen, rejected = (
        _whole_answer(turns[shared:], key) for turns, key in zip(both, ("chosen", "rejected"), strict=True)
    )
    return _preference(conversation(row, prompt, "chosen"), chosen, rejected, "rejected")


def _whole(row: Row, key: str) -> tuple[Message, ...]:
    """A whole conversation under `key`: turns, or HH-RLHF's text."""
    if isinstance(row[key], list):
        return parse_turns(row, row[key], key)
    text = row.text(key)
    before, *pieces = HUMAN_OR_ASSISTANT.split("\n\n" + text.lstrip())
    if before.strip() or not pieces:
        expected = 'turns, or text that begins with "\\n\\nHuman: …\\n\\nAssistant: …": the record has no key prompt'
        raise RecordError(key, show(text), expected)
    roles = {"Human": "user", "Assistant": "assistant"}
    named = list(zip(pieces[::2], pieces[1::2], strict=True))
    if named[0][0] != "Human":
        raise RecordError(key, "text that begins with an Assistant turn", "a Human turn first")
    return tuple([Message(roles[name], as_text(words.strip(), key, f"text after {name}:")) for name, words in named])


def openai_preference(row: Row) -> Preference:
    """OpenAI's form."""
    given = row["input"]
    inner = Row(row.present(given) if isinstance(given, dict) else {}, row.ignore)
    if "messages" not in inner:
        raise RecordError("input", show(given), EXPECTED["input"])
    row.leave(inner.values, ("messages", "tools", "parallel_tool_calls"), "input")
    if "parallel_tool_calls" in inner:
        row.unused.append("input.parallel_tool_calls")
    prompt = parse_turns(row, inner["messages"], "input.messages")
    prompt_turns(prompt, "input.messages")
    keys = ("preferred_output", "non_preferred_output")
    chosen, rejected = (_whole_answer(side(row, key, "assistant"), key) for key in keys)
    return _preference(conversation(inner, prompt, "input.messages"), chosen, rejected, keys[1])


def vertex_preference(row: Row) -> Preference:
    """Vertex AI's form."""
    prompt = gemini_turns(row)
    prompt_turns(prompt, "contents")
    found = row["completions"]
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(item, dict) for item in found):
        raise RecordError("completions", show(found), EXPECTED["completions"])
    answers: dict[int, tuple[Message, ...]] = {}
    for i, item in enumerate(found):
        score, at = item.get("score"), f"completions[{i}]"
        if isinstance(score, bool) or not isinstance(score, int | float) or score not in (0, 1):
            raise RecordError(f"{at}.score", show(score), "1 (preferred) or 0")
        row.leave(row.present(item), ("score", "completion"), at)
        turn = parse_turn(row, item.get("completion"), f"{at}.completion", GEMINI)
        answers[int(score)] = _whole_answer((turn,), f"{at}.completion")
    if len(answers) != 2:
        raise RecordError("completions", "two answers of the same score", EXPECTED["completions"])
    return _preference(prompt, answers[1], answers[0], "completions")


def _preference(prompt: Text, chosen: Text, rejected: Text, key: str) -> Preference:
    if chosen == rejected:
        raise RecordError(key, "two identical answers", "two different ones: there is nothing to prefer")
    return Preference(prompt, chosen, rejected)
