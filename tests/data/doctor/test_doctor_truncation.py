"""What is cut, and what of it matters."""

import pytest
from test_doctor import diagnosed, encode, found, numbered, splits, words

from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.encoding.encode import encode_splits
from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.findings import Severity
from raytune_llm.data.records import Chat, Message, Preference, Prompt, Supervised

INSTRUCTION = "User Assistant yes no"


def extractive(count: int, length: int, answer_at: int) -> list[Supervised]:
    """Prompts of an instruction and `length` numbers, whose answer is the number at a place."""
    made = []
    for i in range(count):
        numbers = [str((i + 7 * k) % 99) for k in range(length)]
        made.append(Supervised(f"{INSTRUCTION} {' '.join(numbers)}", numbers[answer_at]))
    return made


def test_cuts_and_drops_are_counted_per_split():
    chat = Chat((Message("user", "1 " * 9), Message("assistant", "yes")))
    train = [*numbered(8), Supervised("1 " * 30, "2"), chat]
    diagnosis = diagnosed(splits(train, [chat]), words(10), context_tokens=10)
    cut = diagnosis.splits["train"].truncation
    assert (cut.records, cut.cut, cut.prompts_cut, cut.dropped) == (10, 2, 2, 1)
    assert diagnosis.warnings[:2] == [
        "train: 1 of 10 loses the beginning of their prompt: the longest has 32 tokens, and 10 are all that the base "
        "can take; shorten the records or use a base with a longer context",
        "train: 1 of 10 sequences lose tokens to learn, 7 % of all: the longest has 32 tokens, and 10 are all that "
        "the base can take; shorten the records or use a base with a longer context",
    ]
    [dropped] = found(diagnosis, "dropped")
    assert dropped.text.startswith("train: 1 of 10 records is dropped: truncation leaves no answer token: the longest")
    assert dropped.places[0].where == "data.train, record 10"
    nothing = (
        "nothing is left of eval after truncation: the longest has 32 tokens, and 10 are all that the base can take; "
        "shorten the records or use a base with a longer context"
    )
    assert diagnosis.problems == [nothing] and diagnosis.verdict == f"not usable: {nothing}"


def test_a_lost_instruction_and_answers_that_left_the_context():
    early, late = extractive(20, 30, answer_at=2), extractive(20, 30, answer_at=-1)
    short = extractive(40, 5, answer_at=0)
    diagnosis = diagnosed(splits(early + late + short), words(24), context_tokens=24)
    [instruction] = found(diagnosis, "prompt_beginning_lost")
    assert instruction.text == (
        "train: 40 of 80 lose the beginning of their prompt, the instruction ('User Assistant yes no'): the longest "
        "has 36 tokens, and 24 are all that the base can take; put the instruction last, shorten the records or use a "
        "base with a longer context"
    )
    [answers] = found(diagnosis, "answer_out_of_context")
    kept = 24 - 2  # of 34 words, 22 remain for the prompt
    lost = sum(record.completion not in record.prompt.split()[-kept:] for record in early + late)
    assert answers.count == lost == 20
    assert answers.text == (
        "train: 20 answers can be read in the whole prompt, but no longer in what is kept of it: the model would learn "
        "to make them up"
    )


def test_the_remedy_is_possible():
    data = splits(extractive(20, 30, answer_at=2))
    assert "put the instruction last, set data.max_tokens=36 (now 24; keeps all) or shorten the records" in (
        found(diagnosed(data, words(24), context_tokens=64), "prompt_beginning_lost")[0].text
    )
    assert "set data.max_tokens=30 (now 24; of 36 needed)" in (
        found(diagnosed(data, words(24), context_tokens=30), "prompt_beginning_lost")[0].text
    )
    assert "set data.max_tokens=36 (now 24; keeps all)" in (
        found(diagnosed(data, words(24)), "prompt_beginning_lost")[0].text
    )


def test_a_few_cut_prompts_without_an_instruction_are_a_note():
    diagnosis = diagnosed(splits([*numbered(99), Supervised("1 " * 30, "2")]), words(10))
    [cut] = found(diagnosis, "prompt_beginning_lost")
    assert cut.severity is Severity.note and diagnosis.verdict == "sound"
    assert found(diagnosis, "answer_out_of_context") == []


def test_a_record_of_exactly_the_longest_length_is_not_cut():
    diagnosis = diagnosed(splits([Supervised("1 2 3 4 5 6 7 8", "2"), Supervised("9 " * 30, "2")]), words(10))
    assert found(diagnosis, "prompt_beginning_lost")[0].count == 1


@pytest.mark.parametrize(
    ("max_tokens", "kind"), [(2, "answers_cut"), (12, "dropped")], ids=["most tokens lost", "most records dropped"]
)
def test_too_little_is_left(max_tokens, kind):
    long = [Chat((Message("user", f"{i} " * 20), Message("assistant", "yes"))) for i in range(30)]
    answers = [Supervised(f"ask {i}", "1 2 3 4 5 6 7 8 9") for i in range(20)]
    diagnosis = diagnosed(splits(answers if max_tokens == 2 else long + answers), words(max_tokens))
    [problem] = [one for one in found(diagnosis, kind) if one.severity is Severity.problem]
    assert diagnosis.verdict.startswith("not usable")
    assert problem.count == {"answers_cut": 20, "dropped": 30}[kind]


@pytest.mark.parametrize("max_tokens", [2, 12, 20])
def test_what_would_leave_something_is_said(max_tokens):
    data = splits([Chat((Message("user", f"{i} " * 20), Message("assistant", "yes"))) for i in range(30)])

    def problems(context_tokens):
        return diagnosed(data, words(max_tokens), context_tokens=context_tokens).problems

    for context in (64, None):
        assert problems(context) == [
            "nothing is left of train after truncation: set data.max_tokens=26 "
            f"(now {max_tokens}; keeps all) or shorten the records"
        ]
    assert problems(22) == [
        "nothing is left of train after truncation: set data.max_tokens=22 "
        f"(now {max_tokens}; of 26 needed) or shorten the records"
    ]


def test_nothing_that_was_not_cut_has_no_remedy():
    data, tokens = splits(numbered(3)), words()
    diagnosis = examine(data, encode_splits(data, tokens, lambda record, tokens: None), tokens)
    assert diagnosis.problems == ["nothing is left of train after truncation"]


def test_pairs_that_are_equal_once_they_are_cut():
    same = [Preference(f"ask {i}", f"{'1 ' * 12}2", f"{'1 ' * 12}3") for i in range(10)]
    other = [Preference(f"ask {i}", "4", "5") for i in range(30)]
    diagnosis = diagnosed(splits(same + other), words(12), context_tokens=12)
    [equal] = found(diagnosis, "equal_after_cutting")
    assert equal.text.startswith(
        "train: 10 of 40 pairs have answers that are the same tokens once they are cut, so nothing"
    )
    assert equal.severity is Severity.warning
    assert found(diagnosed(splits(same), words(12)), "equal_after_cutting")[0].severity is Severity.problem


def test_without_tokens_nothing_is_known_of_cuts():
    assert examine(splits(extractive(20, 300, answer_at=2))).max_tokens is None
    data = splits(numbered(3))
    assert examine(data, encode_splits(data, tokens := words(64), encode), tokens).max_tokens == 64


def test_prompts_of_which_next_to_nothing_is_kept_are_a_problem():
    long = [Supervised(f"{INSTRUCTION} {' '.join(str((i + k) % 99) for k in range(40))}", "yes") for i in range(30)]
    diagnosis = diagnosed(splits([*long, *numbered(20)]), words(14), context_tokens=64)
    assert diagnosis.problems == [
        "train: 30 of 50 prompts are cut to next to nothing (12 of 44 tokens on average), so a model can't know what "
        "it is asked: set data.max_tokens=46 (now 14; keeps all) or shorten the records"
    ]
    assert diagnosis.warnings == [], "what else these lose goes without saying"
    [gone] = found(diagnosis, "prompts_gone")
    assert gone.count == 30 and gone.places[0].where == "data.train, record 1"
    [limit] = diagnosed(splits([*long, *numbered(20)]), words(14), context_tokens=14).problems
    assert limit.endswith(
        "is asked: the longest has 46 tokens, and 14 are all that the base can take; shorten the records or use a base "
        "with a longer context"
    )


@pytest.mark.parametrize(
    ("length", "max_tokens", "is_gone"),
    [(40, 18, True), (40, 19, False), (30, 18, False), (190, 20, True), (190, 24, False)],
    ids=["16 of 40", "17 of 40", "16 of 30", "18 of 190", "22 of 190"],
)
def test_how_little_is_next_to_nothing(length, max_tokens, is_gone):
    data = [Supervised(" ".join(str((i + 7 * k) % 99) for k in range(length)), "yes") for i in range(20)]
    assert bool(found(diagnosed(splits(data), words(max_tokens)), "prompts_gone")) is is_gone


def test_prompts_that_lose_all_in_which_they_differ_are_a_problem():
    task = " ".join(["User", "Assistant"] * 10)
    data = [Supervised(f"{i} {i + 1} {i + 2} {i + 3} {task}", "yes") for i in range(60)]
    [gone] = found(diagnosed(splits(data), words(22)), "prompts_gone")
    assert gone.severity is Severity.problem and "60 of 60 prompts" in gone.text and "20 of 24 tokens" in gone.text
    assert found(diagnosed(splits(data), words(23)), "prompts_gone") == [], "a number is left"


def test_half_of_the_prompts_may_be_cut_to_nothing():
    long = [Supervised(" ".join(str((i + 7 * k) % 99) for k in range(40)), "yes") for i in range(20)]
    diagnosis = diagnosed(splits([*long, *numbered(20)]), words(14))
    assert diagnosis.problems == [] and len(found(diagnosis, "prompt_beginning_lost")) == 1


def test_sampled_conversations_of_which_nothing_is_kept():
    data = splits([Prompt((Message("user", f"{i} " * 40),)) for i in range(20)])
    tokens = words(24)

    def sampled(record, tokens):
        return {
            "prompt": TokenSequence(
                ids := tokens.sampled_prompt(record.prompt, max_new_tokens=16), [IGNORED] * len(ids)
            )
        }

    diagnosis = examine(data, encode_splits(data, tokens, sampled), tokens)
    [gone] = found(diagnosis, "prompts_gone")
    assert "20 of 20 prompts are cut to next to nothing (8 of 44 tokens" in gone.text
