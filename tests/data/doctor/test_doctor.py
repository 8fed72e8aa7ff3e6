"""What the doctor counts, and what it warns of."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raytune_llm.data.doctor.advice import Horizon
from raytune_llm.data.doctor.diagnosis import Diagnosis
from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.encoding.encode import encode_splits
from raytune_llm.data.files import Splits
from raytune_llm.data.findings import Finding, Severity
from raytune_llm.data.records import Chat, PlainText, Preference, Rationale, Supervised
from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens


def words(max_tokens: int = 64) -> Tokens:
    """One token a word."""
    vocabulary = {
        word: i for i, word in enumerate(["<unk>", "</s>", "Assistant", "User", ":", "yes", "no", *map(str, range(99))])
    }
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    supply_template(tokenizer)
    return Tokens(tokenizer, max_tokens=max_tokens, is_encoder_decoder=False)


def encode(record, tokens):
    if isinstance(record, Preference):
        sides = {side: tokens.completion(record.prompt, getattr(record, side)) for side in ("chosen", "rejected")}
        return None if None in sides.values() else sides
    if isinstance(record, Chat):
        sequence = tokens.conversation(record.messages)
    elif isinstance(record, PlainText):
        sequence = tokens.text(record.text)
    else:
        sequence = tokens.completion(record.prompt, record.completion)
    return None if sequence is None else {"completion": sequence}


def splits(train, evaluation=(), test=(), carved=False) -> Splits:
    return Splits(list(train), list(evaluation), list(test), {}, carved)


def numbered(count: int, start: int = 0) -> list[Supervised]:
    return [Supervised(f"ask {i}", f"say {i}") for i in range(start, start + count)]


def warnings(*arguments) -> list[str]:
    return examine(splits(*arguments)).warnings


def diagnosed(found: Splits, tokens: Tokens, **options) -> Diagnosis:
    return examine(found, encode_splits(found, tokens, encode), tokens, **options)


def found(diagnosis: Diagnosis, kind: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.kind == kind]


def test_sound_data():
    tokens = words()
    diagnosis = diagnosed(splits(numbered(50), numbered(40, 50), carved=True), tokens)
    assert diagnosis.verdict == "sound" and diagnosis.findings == []
    assert diagnosis.text().splitlines() == [
        "data          records  kind",
        "  train            50  Supervised",
        "  eval             40  Supervised (carved from train)",
        "tokens (at most 64)       median    95 %  longest     cut",
        "  train prompt                 2       2        2       0",
        "  train completion             3       3        3       0",
        "  eval  prompt                 2       2        2       0",
        "  eval  completion             3       3        3       0",
        "verdict: sound",
    ]


def test_lengths_of_each_part():
    facts = diagnosed(splits([*numbered(9), Supervised("1 " * 30, "2 3 4")]), words()).splits["train"]
    assert facts.num_records == 10 and facts.kinds == {"Supervised": 10} and facts.sources == {"data.train": 10}
    prompt, completion = facts.prompt_tokens, facts.completion_tokens
    assert (prompt.median, prompt.most, prompt.longest, prompt.total) == (2, 30, 30, 48)
    assert prompt.histogram.edges == (2, 3, 4, 6, 8, 12, 16, 24, 32) and prompt.histogram.counts == (9, *[0] * 6, 1)
    assert (completion.median, completion.longest, completion.total) == (3, 4, 31)
    assert facts.num_bytes == 9 * len("ask 1\nsay 1") + 60 + 6


def test_a_preference_counts_twice():
    pair = Preference("1", "2", "3 4")
    facts = diagnosed(splits([pair]), words()).splits["train"]
    assert facts.truncation.records == 2
    assert (facts.completion_tokens.median, facts.completion_tokens.longest) == (2, 3)


def test_encoder_decoder_lengths_are_of_each_side():
    tokens = Tokens(words().tokenizer, max_tokens=64, is_encoder_decoder=True)
    diagnosis = diagnosed(splits([Supervised("1 2 3 4 5", "6")]), tokens)
    facts = diagnosis.splits["train"]
    assert facts.prompt_tokens.longest == 5 and facts.completion_tokens.longest == 2
    [preview] = diagnosis.previews
    assert [(part.text, part.has_loss) for part in preview.sequences["completion"]] == [
        ("1 2 3 4 5", False),
        ("6 </s>", True),
    ]


def test_small_eval():
    assert warnings(numbered(50), numbered(12, 90)) == [
        "eval has 12 records: confidence intervals will be wide; use at least 30, better 200"
    ]


def test_conflicts_and_duplicates():
    train = [*numbered(40), Supervised("ask 3", "something else"), *numbered(2)]
    diagnosis = examine(splits(train, numbered(30, 60)))
    assert diagnosis.warnings == [
        "train: 2 records repeat an earlier one word for word: what is repeated weighs more; leave it out unless that "
        "is meant",
        "train: conflicting answers for 1 prompt: a model can learn one of them only; keep the right one",
    ]
    duplicates, conflicts = diagnosis.findings
    assert [place.where for place in duplicates.places] == ["data.train, record 42", "data.train, record 43"]
    assert [(place.where, place.excerpt) for place in conflicts.places] == [("data.train, record 4", "ask 3")]


def test_preferences_both_ways_are_a_conflict():
    both_ways = [Preference(*texts.split()) for texts in ("a b c", "a c b", "d b c", "d b e")]
    [conflict] = found(examine(splits(both_ways)), "conflicts")
    assert conflict.count == 1 and conflict.places[0].excerpt == "a"
    unlabelled = [Rationale("a", None, None), Rationale("a", "b", None)]
    assert found(examine(splits(unlabelled)), "conflicts") == []


def test_records_that_lack_what_a_method_learns():
    diagnosis = examine(splits([Rationale("a", "b", None), Rationale("c", None, "d")], [Rationale("e", None, "f")]))
    assert diagnosis.warnings[:2] == [
        "1 of 2 train records has no label (output_text); jobs/annotate.py has a teacher write it",
        "1 of 2 train records has no rationale; jobs/annotate.py has a teacher write it",
    ]
    assert diagnosis.problems == ["no record of eval has a label (output_text), so no answer can be scored"]
    assert warnings([Rationale("a", "b", None)] * 1) == [
        "the only train record has no rationale; jobs/annotate.py has a teacher write it"
    ]


def test_strict_makes_problems_of_warnings():
    diagnosis = examine(splits([*numbered(9), Supervised("a", " b"), *numbered(1)]), strict=True)
    assert diagnosis.warnings == [] and len(diagnosis.problems) == 2
    assert diagnosis.verdict == "not usable: 2 problems"
    note = Finding("x", Severity.note, "", "a note")
    assert examine(splits(numbered(9)), strict=True, more=[note]).verdict == "sound"


def test_what_was_found_elsewhere_is_reported_too():
    more = [Finding("eos", Severity.warning, "", "never ends")]
    assert examine(splits(numbered(9)), more=more).text().endswith("  ! never ends\nverdict: usable, with 1 warning")


def test_notes_and_advice():
    diagnosis = diagnosed(splits(numbered(90)), words(), horizon=Horizon(batch_size=4, steps=90))
    assert diagnosis.notes == [
        "450 tokens in train, 270 of them in answers (60%)",
        "23 steps an epoch at tuning.batch_size=4; tuning.steps=90 makes 4.0 epochs",
        "limits that hosted services often have (32,000 tokens a record, 256 eval records, 1 GB a file): kept",
    ]
    assert {advice.key: advice.value for advice in diagnosis.advice} == {
        "tuning.steps": "225",
        "tuning.learning_rate_multiplier": "0.5",
        "tuning.adapter_size": "4",
    }
    assert (
        diagnosis.advice[0].reason == "10.0 epochs of 90 examples at tuning.batch_size=4; early stopping ends it sooner"
    )
    assert examine(splits(numbered(90))).advice == [], "nothing is known of tokens"


def test_weights_of_sources_make_the_epoch():
    diagnosis = diagnosed(splits(numbered(90)), words(), horizon=Horizon(batch_size=4, steps=90, num_examples=180))
    assert diagnosis.notes[1] == (
        "180 examples an epoch by the weights of the sources; 45 steps an epoch at tuning.batch_size=4; "
        "tuning.steps=90 makes 2.0 epochs"
    )


def test_limits_of_hosted_services():
    diagnosis = diagnosed(splits(numbered(9), numbered(300, 10)), words())
    assert diagnosis.notes[-1].endswith("1 GB a file): exceeded by 300 eval records")


def test_scripts():
    russian = [Supervised(f"вопрос {i}", f"ответ {i}") for i in range(40)]
    diagnosis = examine(splits(numbered(40), russian))
    assert diagnosis.splits["eval"].scripts == {"Cyrillic": 1.0}
    assert diagnosis.warnings == [
        "eval is written in Cyrillic letters (100%), train is not (0%): is it the same language?"
    ]
    assert examine(splits(numbered(40) + russian)).notes[1] == "letters of train: Cyrillic 65%, Latin 35%"
