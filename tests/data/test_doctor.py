"""What the doctor counts, and what it warns of."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raytune_llm.data.diagnosis import Diagnosis
from raytune_llm.data.doctor import examine
from raytune_llm.data.encode import encode_splits
from raytune_llm.data.files import Splits
from raytune_llm.data.records import Chat, Message, Preference, Rationale, Supervised
from raytune_llm.data.template import supply_template
from raytune_llm.data.tokens import Tokens


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
    else:
        sequence = tokens.completion(record.prompt, record.completion)
    return None if sequence is None else {"completion": sequence}


def splits(train, evaluation=(), test=(), carved=False) -> Splits:
    return Splits(list(train), list(evaluation), list(test), {}, carved)


def numbered(count: int, start: int = 0) -> list[Supervised]:
    return [Supervised(f"ask {i}", f"say {i}") for i in range(start, start + count)]


def warnings(*arguments) -> list[str]:
    return examine(splits(*arguments), None).warnings


def diagnosed(found: Splits, tokens: Tokens) -> Diagnosis:
    return examine(found, encode_splits(found, tokens, encode))


def test_sound_data():
    tokens = words()
    diagnosis = diagnosed(splits(numbered(50), numbered(40, 50), carved=True), tokens)
    assert diagnosis.verdict == "sound" and diagnosis.warnings == []
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


def test_cuts_and_drops_are_counted_per_split():
    chat = Chat((Message("user", "1 " * 9), Message("assistant", "yes")))
    train = [*numbered(8), Supervised("1 " * 30, "2"), chat]
    diagnosis = diagnosed(splits(train, [chat]), words(10))
    cut = diagnosis.splits["train"].truncation
    assert (cut.records, cut.cut, cut.prompts_cut, cut.dropped) == (10, 2, 2, 1)
    assert diagnosis.warnings[0] == (
        "train: 2 of 10 sequences (20%) are truncated, losing 7% of the tokens to learn; the longest has 32 tokens: "
        "shorten the records, raise data.max_tokens, or use a base with a longer context"
    )
    assert diagnosis.warnings[1] == "train: 1 of 10 sequences are dropped: truncation leaves no answer token"
    assert diagnosis.problems == ["nothing is left of eval after truncation"]
    assert diagnosis.verdict == "not usable: nothing is left of eval after truncation"
    assert diagnosis.text().endswith("  ✗ nothing is left of eval after truncation\nverdict: " + diagnosis.verdict)


def test_a_preference_counts_twice():
    pair = Preference("1", "2", "3 4")
    diagnosis = diagnosed(splits([pair]), words())
    assert diagnosis.splits["train"].truncation.records == 2
    assert diagnosis.splits["train"].completion_tokens == {"median": 2, "95 %": 3, "longest": 3}


def test_encoder_decoder_lengths_are_of_each_side():
    tokens = words()
    tokens = Tokens(tokens.tokenizer, max_tokens=64, is_encoder_decoder=True)
    facts = diagnosed(splits([Supervised("1 2 3 4 5", "6")]), tokens).splits["train"]
    assert facts.prompt_tokens["longest"] == 5 and facts.completion_tokens["longest"] == 2


def test_labels_and_their_skew():
    train = [Supervised(f"ask {i}", "yes" if i % 10 else "no") for i in range(100)]
    held = [Supervised(f"ask {i}", "yes" if i % 2 else "maybe") for i in range(100, 140)]
    diagnosis = examine(splits(train, held), None)
    assert diagnosis.splits["train"].labels == {"yes": 90, "no": 10}
    assert diagnosis.warnings == [
        "train labels are imbalanced ('no' 10.0%): accuracy is misleading; report the F1 of 'no'",
        "eval has labels that never occur in train: 'maybe'",
    ]
    assert "  yes      90   90.0%\n  no       10   10.0%" in diagnosis.text()
    assert "tokens" not in diagnosis.text(), "none were counted"
    assert examine(splits(numbered(50)), None).splits["train"].labels is None, "free text is no label"
    assert warnings(numbered(40, 200) + train, held) == [], "a single free text, and they are no labels"


def test_small_eval():
    assert warnings(numbered(50), numbered(12, 90)) == [
        "eval has 12 records: confidence intervals will be wide; use at least 30, better 200"
    ]


def test_leaks():
    held = [Supervised(f"ASK  {i}", "other") for i in range(5)] + numbered(40, 60)
    [warning] = warnings(numbered(50), held)
    assert warning == (
        "5 of 45 eval records also occur in train (leakage): eval scores are optimistic: 'ASK 0', 'ASK 1', 'ASK 2' …"
    )
    chats = [
        Chat((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", str(i)), Message("assistant", "x")))
        for i in range(80)
    ]
    assert warnings(chats[:40], chats[40:]) == [], "a common beginning is no leak"
    assert "1 of 41 eval records" in warnings(chats[:40], [*chats[40:], chats[7]])[0]


def test_one_prompt_for_all_is_no_leak():
    pairs = [Preference("Be funny.", f"good {i}", f"bad {i}") for i in range(80)]
    assert warnings(pairs[:40], pairs[40:]) == []
    [warning] = warnings(pairs[:40], [*pairs[40:], pairs[3]])
    assert warning.startswith("1 of 41 eval records also occur in train")


def test_conflicts_and_duplicates():
    train = [*numbered(40), Supervised("ask 3", "something else"), *numbered(2)]
    assert warnings(train, numbered(30, 60)) == [
        "conflicting answers for 1 prompts of train: 'ask 3'",
        "duplicate records in train: 2",
    ]
    both_ways = [
        Preference("a", "b", "c"),
        Preference("a", "c", "b"),
        Preference("d", "b", "c"),
        Preference("d", "b", "e"),
    ]
    assert examine(splits(both_ways), None).conflicts.first == ["a"]
    unlabelled = [Rationale("a", None, None), Rationale("a", "b", None)]
    assert examine(splits(unlabelled), None).conflicts.count == 0


def test_oddities():
    chat = Chat((Message("user", "1"), Message("assistant", "2"), Message("user", "3")))
    diagnosis = examine(splits([*numbered(9), Supervised("a", " b"), Supervised("b", "caf\ufffd"), chat]), None)
    assert list(diagnosis.oddities.values()) == [1, 1, 1]
    assert diagnosis.warnings == [
        "answers with leading or trailing whitespace: 1 in train",
        "answers with a replacement character (�), a sign of a wrong encoding: 1 in train",
        "chats that end in a user turn, which is not learned from: 1 in train",
    ]
    assert diagnosis.verdict == "usable, with 3 warnings"
